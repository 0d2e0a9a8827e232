"""Words of texts, and BM25 over a few of them (Robertson & Zaragoza 2009, "BM25 and Beyond")."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

#: Robertson's usual values; term saturation and length normalisation.
K1, B = 1.2, 0.75

# Words of any script; camelCase is a habit of ASCII names.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+")
# Words that say nothing about an intent.
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a about an and any are as at be by can do for from get give has have how i if in into is it its me my
        of on or our please should so some tell than that the their them there this to want was we what when
        which who will with would you your""",
    )
)


@cache
def _stemmer() -> Any:
    # Who only asks never searches.
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


def terms(text: str) -> list[str]:
    """Stemmed words of a text; camelCase and snake_case names fall into their parts."""
    words = (word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text)))
    return [_stem(word) for word in words if word not in _STOP]


class Index:
    """BM25 over a fixed set of documents; build a new one when they change."""

    def __init__(self, documents: Iterable[list[str]]) -> None:
        self._counts = [Counter(doc) for doc in documents]
        self._lengths = [sum(count.values()) for count in self._counts]
        self._mean = (sum(self._lengths) / len(self._lengths) if self._lengths else 0.0) or 1.0
        holders = Counter(term for count in self._counts for term in count)
        total = len(self._counts)
        self._idf = {term: math.log(1 + (total - held + 0.5) / (held + 0.5)) for term, held in holders.items()}

    def scores(self, intent: str) -> list[float]:
        """One score per document, 0.0 where no word is shared."""
        wanted = [term for term in terms(intent) if term in self._idf]
        return [
            sum(self._weight(term, count, length) for term in wanted)
            for count, length in zip(self._counts, self._lengths, strict=True)
        ]

    def _weight(self, term: str, count: Counter[str], length: int) -> float:
        seen = count[term]
        if not seen:
            return 0.0
        return self._idf[term] * seen * (K1 + 1) / (seen + K1 * (1 - B + B * length / self._mean))
