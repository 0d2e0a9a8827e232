"""Ranking by meaning: vectors of what topics say, held against the vector of an intent.

It takes numpy, so only who ranks by it imports this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

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
NONE: Vectors = np.zeros(0, np.float32)
NOTHING: Mapping[TopicKey, float] = MappingProxyType({})


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

    @property
    def width(self) -> int:
        """Numbers of each vector; 0 as long as there is none."""
        return int(self._rows.shape[1])

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

    def scores(self, intent: Sequence[float] | Vectors) -> Nearness:
        """How near each topic is to an intent by its vector."""
        if self._compared is None:
            self._compared = self._as_compared(self._rows)
        found = self._compared @ self._as_compared(unit(np.asarray(intent, np.float32))) if self._numbers else NONE
        return Nearness(self._numbers, self._keys, found)


class Nearness:
    """How near topics are to an intent, from -1 to 1; good until the ranker that tells it changes."""

    def __init__(self, numbers: Mapping[TopicKey, int], keys: Sequence[TopicKey | None], scores: Vectors) -> None:
        self._numbers, self._keys, self._scores = numbers, keys, scores

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, key: TopicKey) -> bool:
        return key in self._numbers

    def __getitem__(self, key: TopicKey) -> float:
        return float(self._scores[self._numbers[key]])

    def best(
        self, most: int, keep: Callable[[TopicKey], bool], besides: Mapping[TopicKey, float] = NOTHING
    ) -> list[tuple[float, TopicKey]]:
        """The topics that `keep` lets pass, the nearest `most` of them first.

        Args:
            besides: what is added to the nearness of topics before they are put in order; others are passed over.
        """
        number = self._numbers.get
        rows = np.fromiter((number(key, -1) for key in besides), np.intp, len(besides))
        more = np.fromiter(besides.values(), np.float32, len(besides))
        scores = self._scores.copy()
        scores[rows[rows >= 0]] += more[rows >= 0]
        order = ((float(scores[row]), self._keys[row]) for row in np.argsort(-scores))
        kept = ((score, key) for score, key in order if key is not None and keep(key))
        return list(itertools.islice(kept, most))
