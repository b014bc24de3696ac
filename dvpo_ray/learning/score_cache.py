"""Scores of sequences that were scored before: the models are frozen, so a score never gets old."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from dvpo_ray.types import Trajectory

Entry = tuple[np.ndarray, np.ndarray, np.ndarray]
ENTRY_BYTES = 400  # what Python and NumPy need beside the numbers


class ScoreCache:
    """What frozen models said of a sequence (values, reference log-probs, scores), the longest unused thrown out first.

    A key holds the seal (the models' parameter hashes): an entry is of no use with other models.
    """

    def __init__(self, limit_bytes: int, seal: str) -> None:
        self._limit = limit_bytes
        self._seal = seal
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def key(self, answer: Trajectory) -> bytes:
        """Digest of the seal and of prompt and response, and where one ends."""
        prompt, response = (np.ascontiguousarray(ids, dtype=np.int32) for ids in (answer.prompt_ids, answer.response_ids))
        digest = hashlib.sha256(f"{self._seal}:{prompt.size}:".encode())
        digest.update(prompt.data)
        digest.update(response.data)
        return digest.digest()

    def get(self, key: bytes) -> Entry | None:
        """(values [T + 1], reference log-probs [T], scores of reward models [M]), or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self.hits += 1
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an answer's scores, and throw out old ones to make room."""
        size = _size(entry)
        if key in self._entries or size > self._limit:
            return
        values, ref_log_probs, scores = entry
        self._entries[key] = values.copy(), ref_log_probs.copy(), scores.copy()
        self._bytes += size
        while self._bytes > self._limit:
            _, old = self._entries.popitem(last=False)
            self._bytes -= _size(old)


def _size(entry: Entry) -> int:
    return sum(array.nbytes for array in entry) + ENTRY_BYTES
