"""Micro-batches under a token budget, fair shares of ranks, and padded tensors.

Padding exists only inside one micro-batch: rows are sorted by length and cut where it wastes least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# Of groupings that cost the same take the more even one: the largest group sets the peak of memory.
EVENNESS = 0.01


def packed_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group row indices so that the tokens of a group are at most ``token_budget``, in few groups of about the same size.

    Raises:
        ValueError: one row alone is over the budget.
    """
    if not lengths:
        return []
    _check_fits(max(lengths), token_budget)
    for count in range(-(-sum(lengths) // token_budget), len(lengths) + 1):
        groups = share_rows(lengths, count)
        if all(sum(lengths[i] for i in group) <= token_budget for group in groups):
            return groups
    raise AssertionError("a group for each row fits")


def _check_fits(longest: int, token_budget: int) -> None:
    if longest > token_budget:
        raise ValueError(f"a row of {longest} tokens does not fit the token budget of {token_budget}")


def micro_batches(lengths: Sequence[int], token_budget: int, max_padding: float = 1.0, packed: bool = False) -> list[list[int]]:
    """Group row indices so that rows x longest row <= ``token_budget``, longest rows first.

    Rows sorted by length are cut where it costs the fewest padded tokens, into about the fewest groups whose padding is at
    most ``max_padding`` of their tokens. Any share can be reached, because rows of one length need no padding. ``packed`` rows
    are never padded: ``packed_micro_batches``.

    Raises:
        ValueError: one row alone is over the budget.
    """
    if packed:
        return packed_micro_batches(lengths, token_budget)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if not order:
        return []
    sizes = np.array([lengths[i] for i in order], dtype=np.int64)
    _check_fits(int(sizes[0]), token_budget)
    # A group costs its padded tokens and a price. The larger the price, the fewer the groups; the search is for the largest
    # price whose groups are padded little enough.
    low, high = 0.0, float(token_budget)
    cuts = _cuts(sizes, token_budget, high)
    if _padding(sizes, cuts) > max_padding:
        cuts = _cuts(sizes, token_budget, low)
        while high - low > 1.0:
            middle = (low + high) / 2
            tried = _cuts(sizes, token_budget, middle)
            if _padding(sizes, tried) <= max_padding:
                low, cuts = middle, tried
            else:
                high = middle
    return [order[first:end] for first, end in pairwise(cuts)]


def _cuts(sizes: np.ndarray, token_budget: int, price: float) -> list[int]:
    """Where to cut rows [N], longest first, so that padded tokens plus ``price`` a group are fewest: 0, ..., N."""
    count = sizes.size
    index = np.arange(count)
    best = np.zeros(count + 1)
    came_from = np.zeros(count + 1, dtype=np.int64)
    first = 0
    for end in range(1, count + 1):
        while (end - first) * sizes[first] > token_budget:
            first += 1
        padded = (end - index[first:end]) * sizes[first:end]
        costs = best[first:end] + padded * (1 + EVENNESS * padded / token_budget)
        chosen = int(costs.argmin())
        best[end], came_from[end] = costs[chosen] + price, first + chosen
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(came_from[cuts[-1]]))
    return cuts[::-1]


def _padding(sizes: np.ndarray, cuts: Sequence[int]) -> float:
    """Share of padding among the tokens of all groups."""
    padded = sum((end - first) * int(sizes[first]) for first, end in pairwise(cuts))
    return 1.0 - float(sizes.sum()) / padded


def share_rows(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Split row indices over ranks with nearly equal token sums: longest first, to the rank with least so far."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rank = min(range(ranks), key=lambda r: (loads[r], len(shares[r])))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return shares


@dataclass(frozen=True)
class SequenceBatch:
    """B rows of prompt + response, right-padded to L, and where their tokens of interest stand: all tokens of a row's response,
    or those that the policy wrote.

    Attributes:
        input_ids: [B, L].
        attention_mask: [B, L], 1 on real tokens.
        response_lengths: T_i, the number of tokens of interest of each row [B].
        before_response: flat positions (into B*L) of the token before each of them, [N = sum T_i].
        with_prompt_end: these positions, and that of each row's very last token, [N + B].
        targets: ids of the tokens of interest [N].
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_lengths: np.ndarray
    before_response: Tensor
    with_prompt_end: Tensor
    targets: Tensor


def pad_sequences(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    device: torch.device | str = "cpu",
    pad_id: int = 0,
    masks: Sequence[np.ndarray] | None = None,
) -> SequenceBatch:
    """Build a SequenceBatch from ragged rows; ``masks`` say which tokens of each response are of interest, all without.

    Any id of the vocabulary will do for padding: it is masked, it stands to the right of all a causal model reads, and no
    position of it is asked for.
    """
    lengths = [p.size + r.size for p, r in zip(prompts, responses, strict=True)]
    width = max(lengths)
    ids = np.full((len(lengths), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(lengths), width), dtype=np.int64)
    before, with_end, targets = [], [], []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[i, : prompt.size] = prompt
        ids[i, prompt.size : lengths[i]] = response
        mask[i, : lengths[i]] = 1
        first = i * width + prompt.size - 1
        chosen = np.arange(response.size) if masks is None else np.flatnonzero(masks[i])
        before.append(first + chosen)
        with_end.append(np.append(first + chosen, first + response.size))
        targets.append(response[chosen])
    return SequenceBatch(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        response_lengths=np.array([row.size for row in before]),
        before_response=torch.from_numpy(np.concatenate(before)).to(device),
        with_prompt_end=torch.from_numpy(np.concatenate(with_end)).to(device),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device),
    )


def to_padded(flat: Tensor | np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Ragged rows as a right-padded float32 matrix [B, max length] and its mask."""
    values = torch.as_tensor(flat)
    mask = (
        torch.arange(int(lengths.max()), device=values.device)[None, :] < torch.as_tensor(lengths, device=values.device)[:, None]
    )
    out = torch.zeros(mask.shape, dtype=torch.float32, device=values.device)
    out = out.masked_scatter(mask, values.float())
    return out, mask.float()


def to_flat(padded: Tensor, mask: Tensor) -> Tensor:
    """Active entries of a padded matrix, row by row [N]."""
    return padded[mask > 0]
