"""What actors that failed have said."""

from __future__ import annotations

import pytest

from dvpo_ray.errors import ActorDiedError, PermanentFailureError
from dvpo_ray.loop.restarts import Sentences


def died(sentence: str) -> ActorDiedError:
    return ActorDiedError("engine died: bus error", False, sentence)


def test_the_same_sentence_twice_is_the_end() -> None:
    heard = Sentences()
    heard.hear(died("bus error"))
    heard.hear(died("another"))
    heard.hear(died(""))
    heard.hear(died(""))
    with pytest.raises(PermanentFailureError, match="it was tried again once"):
        heard.hear(died("bus error"))


def test_one_event_may_take_all_that_were_at_work() -> None:
    heard, engines = Sentences(), ["rollout-0", "rollout-1"]
    heard.hear(died("bus error"), "rollout-0", engines)
    heard.hear(died("bus error"), "rollout-1", engines)
    with pytest.raises(PermanentFailureError):
        heard.hear(died("bus error"), "rollout-1", engines)
    with pytest.raises(PermanentFailureError):
        heard.hear(died("bus error"), "rollout-0-start-3", engines)
    heard.forget()
    heard.hear(died("bus error"), "rollout-0-start-3", engines)
