"""What an engine whose processes have died is taken for, by vLLM's own error."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from actors.rollout.engine_log import engine_errors
from dvpo_ray.errors import ActorDiedError, ActorFailedError, PermanentFailureError
from tests.unit.actors.test_engine_log import logged


@pytest.mark.parametrize(
    ("end", "kind", "sentence"),
    [
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=20", PermanentFailureError, ""),
        (
            "IndexError: list index out of range",
            ActorDiedError,
            "the engine's processes died: IndexError: list index out of range",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory.", ActorDiedError, ""),
        ("", ActorDiedError, ""),
    ],
)
def test_an_engine_that_dies_is_given_another_try_unless_it_refuses_the_model(
    end: str, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ActorFailedError) as raised, engine_errors(logged(end, tmp_path)):
        raise EngineDeadError
    assert type(raised.value) is kind and raised.value.sentence == sentence
