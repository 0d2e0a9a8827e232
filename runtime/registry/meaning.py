"""Ranking by meaning: vectors of what topics say, held against the vector of an intent.

It takes numpy, so only who ranks by it imports this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from squadron.runtime.registry.ranker import TopicKey

Vectors = NDArray[np.float32]

#: How much what a topic says of itself counts beside the mean of its examples: by cross-validation on the
#: development half of MetaTool.
ABOUT = 0.25
#: How many examples tell what differs among those of one topic, and the fewest that can; and how much of what they
#: tell is made even, so that directions in which nobody differs are not blown up.
SPREAD_OF, SPREAD_FROM, EVEN = 4096, 200, 1.0


def unit(rows: Vectors) -> Vectors:
    """Rows of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), dtype=np.float32)


class MeaningRanker:
    """One vector for each topic, in rows that are filled and freed one by one.

    In what directions examples of one topic differ from each other says nothing of the topic: intents and topics
    are compared with these directions damped (within-class whitening), once there are examples enough.
    """

    def __init__(self) -> None:
        self._numbers: dict[TopicKey, int] = {}
        self._keys: list[TopicKey | None] = []
        self._free: list[int] = []
        self._rows: Vectors = np.zeros((0, 0), np.float32)
        #: The same as they are compared; None until they are asked for.
        self._compared: Vectors | None = None
        self._apart: list[Vectors] = []
        self._told, self._known_at = 0, 0
        self._even: Vectors | None = None

    def put(self, key: TopicKey, about: Vectors, examples: Vectors) -> None:
        """Take a topic in: the vector of what it says of itself, and one for each example."""
        about, examples = unit(about), unit(examples)
        row = about
        if len(examples):
            mean = examples.mean(axis=0)
            row = unit(mean + ABOUT * about)
            if len(examples) > 1:
                self._note(examples - mean)
        number = self._place(key, row.shape[0])
        self._rows[number] = row
        if self._compared is not None:
            self._compared[number] = self._as_compared(row)

    def _place(self, key: TopicKey, dimensions: int) -> int:
        if key in self._numbers:
            return self._numbers[key]
        if not self._free:
            more = max(256, len(self._keys))
            self._free = list(range(len(self._keys) + more - 1, len(self._keys) - 1, -1))
            self._keys += [None] * more
            grown = np.zeros((len(self._keys), dimensions), np.float32)
            if len(self._rows):
                grown[: len(self._rows)] = self._rows
            self._rows, self._compared = grown, None
        number = self._numbers[key] = self._free.pop()
        self._keys[number] = key
        return number

    def drop(self, key: TopicKey) -> None:
        """Forget a topic; one that is not known is no error."""
        if (number := self._numbers.pop(key, None)) is not None:
            self._keys[number] = None
            self._rows[number] = 0
            if self._compared is not None:
                self._compared[number] = 0
            self._free.append(number)

    def _note(self, apart: Vectors) -> None:
        self._told += len(apart)
        if sum(map(len, self._apart)) < SPREAD_OF:
            self._apart.append(apart)
        if self._told >= max(SPREAD_FROM, 2 * self._known_at) and self._known_at < SPREAD_OF:
            self._known_at, all_apart = self._told, np.vstack(self._apart)
            spread = all_apart.T @ all_apart / len(all_apart)
            dimensions = len(spread)
            spread += EVEN * np.trace(spread) / dimensions * np.eye(dimensions, dtype=np.float32)
            self._even = np.linalg.inv(np.linalg.cholesky(spread)).T.astype(np.float32)
            self._compared = None

    def _as_compared(self, rows: Vectors) -> Vectors:
        return unit(rows @ self._even) if self._even is not None else rows

    def scores(self, intent: Sequence[float] | Vectors) -> dict[TopicKey, float]:
        """How near each topic is to an intent by its vector, from -1 to 1."""
        if not self._numbers:
            return {}
        if self._compared is None:
            self._compared = self._as_compared(self._rows)
        found = self._compared @ self._as_compared(unit(np.asarray(intent, np.float32)))
        return {key: float(score) for key, score in zip(self._keys, found, strict=True) if key is not None}
