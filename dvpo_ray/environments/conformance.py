"""What every environment must do: a check that authors of environments run in their own tests."""

from __future__ import annotations

from collections.abc import Sequence

from dvpo_ray.data.messages import Message
from dvpo_ray.environments.base import Environment, EnvironmentRow, Turn

# What a policy may write, most of all in its first steps: nothing, noise, and what is far too long.
WRITINGS = ("", "an answer", "<|im_end|> {} \\ \x00 \n", "é漢😀", "0" * 20_000)
MOST_TURNS = 20


async def check_environment(
    environment: Environment, row: EnvironmentRow, writings: Sequence[str] = WRITINGS, ends: bool = False
) -> list[Turn]:
    """Play one episode, and check that the environment keeps to its contract; returns its replies.

    Args:
        environment: a new one, which is closed in the end.
        row: what the episode is about.
        writings: what the policy says, a turn each, at most 20.
        ends: whether the episode must have ended with them.

    Raises:
        AssertionError: it does not, saying how.
    """
    turns: list[Turn] = []
    try:
        opening = await environment.reset(row)
        assert isinstance(opening, tuple | list) and all(isinstance(one, Message) for one in opening), (
            f"reset returned {opening!r}: a tuple of Message, usually an empty one"
        )
        for writing in writings[:MOST_TURNS]:
            turn = await environment.step(writing)
            assert isinstance(turn, Turn), f"step({writing[:40]!r}) returned {turn!r}, not a Turn"
            assert all(one.role != "assistant" for one in turn.messages), "what the policy says is not for an environment to say"
            turns.append(turn)
            if turn.done:
                break
    finally:
        closed = await environment.close()  # type: ignore[func-returns-value]
    assert closed is None, f"close returned {closed!r}"
    assert not ends or (turns and turns[-1].done), f"the episode did not end with {len(turns)} turns"
    return turns
