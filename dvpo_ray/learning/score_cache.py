"""Scores of sequences that were scored before: the models are frozen, so a score never gets old."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from dvpo_ray.rows import Answer

ENTRY_BYTES = 400  # what Python and NumPy need beside the numbers


class ScoreCache:
    """Values and reference log-probs by sequence, the longest unused thrown out first.

    A key holds the seal (the value model's parameter hash): an entry is of no use with another model.
    """

    def __init__(self, limit_bytes: int, seal: str) -> None:
        self._limit = limit_bytes
        self._seal = seal
        self._entries: OrderedDict[bytes, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def key(self, answer: Answer) -> bytes:
        """Digest of the seal and of prompt and response, and where one ends."""
        prompt, response = (np.ascontiguousarray(ids, dtype=np.int32) for ids in (answer.prompt_ids, answer.response_ids))
        digest = hashlib.sha256(f"{self._seal}:{prompt.size}:".encode())
        digest.update(prompt.data)
        digest.update(response.data)
        return digest.digest()

    def get(self, key: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        """(values [T + 1], reference log-probs [T]), or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self.hits += 1
        return entry

    def put(self, key: bytes, values: np.ndarray, ref_log_probs: np.ndarray) -> None:
        """Keep an answer's scores, and throw out old ones to make room."""
        size = values.nbytes + ref_log_probs.nbytes + ENTRY_BYTES
        if key in self._entries or size > self._limit:
            return
        self._entries[key] = (values.copy(), ref_log_probs.copy())
        self._bytes += size
        while self._bytes > self._limit:
            _, (old_values, old_log_probs) = self._entries.popitem(last=False)
            self._bytes -= old_values.nbytes + old_log_probs.nbytes + ENTRY_BYTES
