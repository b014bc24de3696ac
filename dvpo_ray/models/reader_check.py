"""A reader against the model's own ``forward``, in numbers: few tokens, once, where a model is loaded.

Legend: B rows of L tokens; gaps are in nats for log-probabilities, and in units of a random head of norm 1 for values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dvpo_ray.errors import ModelError
from dvpo_ray.models.token_reader import MIN_SHARED_PREFIX, PolicyReader, ValueReader, freeze

Reader = TypeVar("Reader", PolicyReader, ValueReader)

PROBE_TOKENS = 2 * MIN_SHARED_PREFIX
# In float32 no token may be further off than this.
LARGEST_GAP = 1e-3
# Shorter types round: the mean over tokens. The same shapes round nearly the same way; others do not.
MEAN_GAP = 0.03
MEAN_GAP_OTHER_SHAPES = 0.1


def frozen_reader(reader: Reader, device: torch.device | str) -> Reader:
    """A reader in evaluation mode, without gradients, on ``device``, and checked there.

    Raises:
        ModelError: as ``check_reader``.
    """
    freeze(reader).to(device)
    check_reader(reader)
    return reader


@torch.no_grad()
def check_reader(reader: PolicyReader | ValueReader) -> None:
    """Compare a reader with its model's whole ``forward`` on a short row, and take from it what this model cannot do.

    Ranks that shard a model must all call it: every rank makes the same passes. Where a common beginning cannot be read once
    (states of linear attention cannot be repeated, some rotary embeddings change with a pass's length), it is not, and the log
    says so.

    Raises:
        ModelError: naming the model's type: what the reader gives is not what the model says.
    """
    _check_forward(reader)
    if reader.packed:
        _check_packing(reader)
    elif reader.share_prefix and not reader.model.base_model.is_gradient_checkpointing:
        _check_sharing(reader)


def _check_forward(reader: PolicyReader | ValueReader) -> None:
    ids = _probe_ids(reader.model)[:1]
    expected = _own_policy(reader, ids) if isinstance(reader, PolicyReader) else _own_values(reader, ids)
    kind = reader.model.config.model_type
    try:
        if isinstance(reader, PolicyReader):
            _choose_head(reader, ids)
        found = _read(reader, ids)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"model type '{kind}' cannot be read: it has no backbone that gives hidden states to an output layer "
            f"({type(error).__name__}: {error}); nothing was trained; use a model of another family"
        ) from error
    gap = _gap(found, expected, MEAN_GAP, reader.model.dtype)
    if gap is not None:
        what = "log-probabilities" if isinstance(reader, PolicyReader) else "values"
        raise ModelError(
            f"model type '{kind}': its {what}, read from its backbone's hidden states, are {gap} off those of its own forward "
            "pass; nothing was trained, for the numbers would be wrong; use a model of another family"
        )


def _choose_head(reader: PolicyReader, ids: Tensor) -> None:
    """Whether what the model does after its backbone can run by itself; if not, its output layer must do."""
    try:
        _read(reader, ids)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logging.getLogger(__name__).info("%s: %s; its output layer is used alone", type(reader.model).__name__, error)
        reader.bare_head = True


def _check_packing(reader: PolicyReader | ValueReader) -> None:
    """Rows laid end to end must not see each other. Raises ModelError."""
    ids = _probe_ids(reader.model)
    gap = _gap_of_ways(reader, ids, lambda: _read(reader, ids, packed=True))
    if gap is not None:
        raise ModelError(
            f"model type '{reader.model.config.model_type}' with attention '{reader.model.config._attn_implementation}' cannot "
            f"read packed rows ({gap}): they see each other; set model.packing = 'off'"
        )


def _check_sharing(reader: PolicyReader | ValueReader) -> None:
    """Take sharing from a reader whose model cannot continue from a repeated cache, or cannot beyond its trained length."""
    ids = _probe_ids(reader.model)
    changes_at = _rotation_changes_at(reader.model, ids[:1, :2])
    if changes_at is not None:
        reader.shared_up_to = changes_at
        _say_unshared(reader, f"rows longer than {changes_at} tokens", "its rotary embedding depends on a pass's length")
    gap = _gap_of_ways(reader, ids, lambda: _read(reader, ids, shared=True))
    if gap is not None:
        reader.share_prefix = False
        _say_unshared(reader, "rows", gap)


def _rotation_changes_at(model: Any, ids: Tensor) -> int | None:
    """The length from which on a pass turns keys by other angles than a shorter one does (dynamic NTK, LongRoPE), so that keys of
    two passes do not go together; None for models without such a length.

    It is the trained length. Two tokens at places far beyond it stand for a row that long.
    """
    trained = _trained_length(model.config.get_text_config())
    if trained is None:
        return None
    far, near = (_frequencies(model.base_model, ids, place) for place in (4 * trained, 0))
    return None if all(torch.equal(far[name], near[name]) for name in far) else trained


def _frequencies(backbone: nn.Module, ids: Tensor, place: int) -> dict[str, Tensor]:
    """Frequencies of all rotary embeddings after a pass over ``ids`` [1, L] at ``place`` and on."""
    backbone(input_ids=ids, position_ids=torch.arange(place, place + ids.shape[1], device=ids.device)[None], use_cache=False)
    return {name: buffer.clone() for name, buffer in backbone.named_buffers() if name.endswith("inv_freq")}


def _trained_length(config: Any) -> int | None:
    """The length up to which a model's rotary embeddings are those it was trained with; None when they are never scaled."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Some models have one for each type of layer.
    each = [one for one in given.values() if isinstance(one, dict)] or [given]
    lengths = [
        one.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        for one in each
        if one.get("rope_type", one.get("type", "default")) != "default"
    ]
    return min((int(length) for length in lengths if length), default=None)


def _say_unshared(reader: PolicyReader | ValueReader, rows: str, gap: str) -> None:
    logging.getLogger(__name__).warning(
        "model type '%s': the common beginning of %s cannot be read once (%s); they are read in whole",
        reader.model.config.model_type,
        rows,
        gap,
    )


def _gap_of_ways(reader: PolicyReader | ValueReader, ids: Tensor, way: Callable[[], Tensor]) -> str | None:
    """How far one way of reading is off plain passes, in words; None when it is near enough."""
    expected = _read(reader, ids)
    try:
        found = way()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return _gap(found, expected, MEAN_GAP_OTHER_SHAPES, reader.model.dtype)


def _gap(found: Tensor, expected: Tensor, mean_bound: float, dtype: torch.dtype) -> str | None:
    """How far numbers are off, in words; None when they are near enough. Equal ones are, be they finite or not."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    gaps = torch.where(same, 0.0, (found - expected).abs())
    gap, bound, name = (gaps.max(), LARGEST_GAP, "up to") if dtype == torch.float32 else (gaps.mean(), mean_bound, "on average")
    return None if float(gap) <= bound else f"{name} {float(gap):.3g}"


def _probe_ids(model: Any) -> Tensor:
    """Token ids [2, L]: the same in every run, a common beginning first, away from the vocabulary's ends, where special ones
    are."""
    count = model.config.get_text_config().vocab_size
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(count // 8, count // 2 + 1, (2, PROBE_TOKENS), generator=numbers)
    ids[1, :MIN_SHARED_PREFIX] = ids[0, :MIN_SHARED_PREFIX]
    # Where the beginning ends they must differ, else it were longer.
    ids[1, MIN_SHARED_PREFIX] = ids[0, MIN_SHARED_PREFIX] ^ 1
    return ids.to(next(model.parameters()).device)


def _positions(ids: Tensor) -> Tensor:
    """Flat positions after the common beginning, the last one of a row left out; of one row, all but the last."""
    rows, width = ids.shape
    first = 0 if rows == 1 else MIN_SHARED_PREFIX
    return torch.cat([torch.arange(first, width - 1) + row * width for row in range(rows)]).to(ids.device)


def _read(reader: PolicyReader | ValueReader, ids: Tensor, packed: bool = False, shared: bool = False) -> Tensor:
    """What the reader gives at the positions; one row is read as the reader reads."""
    positions, mask = _positions(ids), torch.ones_like(ids)
    before = (reader.packed, reader.share_prefix)
    if len(ids) > 1:
        reader.packed, reader.share_prefix = packed, shared
    try:
        if isinstance(reader, PolicyReader):
            return reader(ids, mask, positions, ids.flatten()[positions + 1], 1.0)[0]
        return _probe_head(reader.hidden_at(ids, mask, positions))
    finally:
        reader.packed, reader.share_prefix = before


def _own_policy(reader: PolicyReader, ids: Tensor) -> Tensor:
    """The same log-probabilities by the model's own forward pass."""
    positions = _positions(ids)
    logits = reader.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    log_p = torch.log_softmax(logits.flatten(0, 1)[positions].float(), -1)
    return log_p.gather(1, ids.flatten()[positions + 1][:, None]).squeeze(1)


def _own_values(reader: ValueReader, ids: Tensor) -> Tensor:
    """The same values by the value model's own forward pass, with a random head in float32: a new one is 0, and tells nothing."""

    def replace(_: nn.Module, given: tuple[Tensor], __: Tensor) -> Tensor:
        return _probe_head(given[0])[..., None]

    hook = reader.model.score.register_forward_hook(replace)
    try:
        logits = reader.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        hook.remove()
    return logits.flatten()[_positions(ids)]


def _probe_head(hidden: Tensor) -> Tensor:
    """Hidden states [..., H] read by a random head of norm 1, in float32 [...]."""
    weight = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0)).to(hidden.device)
    return hidden.float() @ (weight / weight.norm())
