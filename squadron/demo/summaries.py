"""What a distribution is for, in the words of its own README."""

from __future__ import annotations

import html
import math
import re
from collections import Counter

from pydantic import BaseModel, ConfigDict

from squadron.demo.inventory import Installed, find

#: Sentences looked at; READMEs say what they are about early, and change logs come late.
MAX_SENTENCES = 40
#: A shorter sentence is a label ("See the docs."), a longer one is a list that lost its marks.
MIN_CHARS, MAX_CHARS = 25, 320
#: Below this a sentence is neither early, nor typical, nor about the name; tuned by eye on 146 packages.
MIN_SCORE = 1.5
#: How much of a README is cleaned; bounds the time for the ones that carry their history.
MAX_README_CHARS = 40_000

#: Words too common in English to say what a package is about.
_COMMON = """
a an and are as at be but by can for from has have how if in into is it its more not of on or our so that the
their this to use used using was we when which will with you your package library python
"""
_STOP_WORDS = frozenset(_COMMON.split())
#: Sections that tell how to get or change a package, not what it is.
_CHORES = re.compile(
    r"(?i)\b(install\w*|licen[cs]\w*|contribut\w*|change ?log|changes|release notes|history|support|"
    r"sponsor\w*|requirements|dependencies|development|testing|tests|authors?|credits|security|"
    r"code of conduct|community|documentation|docs|links|badges|table of contents|contents|benchmarks?|news|"
    r"upgrad\w*|versioning|examples?|enterprise|testimonials|opinions|who uses)\b"
)
#: Signs that a sentence is about the project's people, paperwork or pages.
_BORING = re.compile(
    r"(?i)\b(pip3? install|apt-get|brew install|conda install|click here|copyright|all rights reserved|"
    r"see (?:the|also|our)|read the docs|read why|you can find|documentation (?:is|can|assumes)|"
    r"source code (?:is|and)|available (?:at|on|from|in|for)|pull requests?|bug reports?|follow us|"
    r"join (?:us|our)|sponsor|is licensed|under the terms|thanks to|github|tidelift|"
    r"stack overflow|code samples|"
    r"for (?:more|full|further) (?:information|details|documentation)|please|warning|importable|many more|"
    r"questions and|no longer support\w*|maintainers|i'm|i am|sometimes i|installed with|when installed|"
    r"should work with|official documentation|changelog|"
    r"upgrading)\b|"
    r"^note\b|^[\"'(.…]"
)
_ABBREVIATION = re.compile(r"(?i)(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|mr|dr|st|no|inc)|\b[A-Z])\.$")


class PackageSummary(BaseModel):
    """One to some sentences about a distribution; `source` is "README", "Summary field" or "none"."""

    model_config = ConfigDict(frozen=True)

    distribution: str
    summary: str
    source: str


def summarize(distribution: str, sentences: int = 2) -> PackageSummary:
    """Pick the sentences of the README that say best what the distribution is.

    Falls back to the one-line Summary of the metadata; an empty summary means that neither exists.

    Raises:
        Terminal: the distribution isn't installed here.
    """
    candidate = find(distribution)
    name = candidate.name
    if chosen := best_sentences(plain_paragraphs(candidate.description), max(1, sentences), _about(candidate)):
        return PackageSummary(distribution=name, summary=" ".join(chosen), source="README")
    if short := " ".join((candidate.header("Summary") or "").split()):
        return PackageSummary(distribution=name, summary=short, source="Summary field")
    return PackageSummary(distribution=name, summary="", source="none")


def plain_paragraphs(readme: str) -> list[str]:
    """The prose of a README in Markdown or reStructuredText, without code, badges, tables and chores."""
    text = _without_blocks(readme[:MAX_README_CHARS])
    paragraphs: list[str] = []
    skipping = False
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").splitlines()
        while lines and (heading := _heading(lines)):
            title, size = heading
            # The first headline is the package's own name, whatever words it has.
            skipping = bool(paragraphs) and bool(_CHORES.search(title))
            lines = lines[size:]
        if lines and not skipping and (prose := _prose(lines)):
            paragraphs.append(prose)
    return paragraphs


def best_sentences(paragraphs: list[str], count: int, about: frozenset[str] = frozenset()) -> list[str]:
    """The `count` best sentences in their order of appearance, by position and term frequency."""
    sentences = [one for paragraph in paragraphs for one in split_sentences(paragraph)][:MAX_SENTENCES]
    # "X is the logging solution for Python:" opens a README well, though its list is gone.
    if sentences and re.search(r"\bis an? |\bis the ", sentences[0]) and not sentences[0].endswith("ing:"):
        sentences[0] = re.sub(r"(?<=\w):$", ".", sentences[0])
    usable = [(at, one) for at, one in enumerate(sentences) if _is_prose(one) and not _BORING.search(one)]
    frequency = Counter(word for _, one in usable for word in set(_words(one)))
    scored = [(_score(at, one, frequency, about), at, one) for at, one in usable]
    ranked = sorted((item for item in scored if item[0] >= MIN_SCORE), reverse=True)
    if about and not any(about & set(_words(one)) for _, _, one in ranked[:count]):
        return []  # none of them is about the thing itself
    return [one for _, _, one in sorted(ranked[:count], key=lambda item: item[1])]


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph at full stops that end a sentence, not at those of abbreviations."""
    sentences: list[str] = []
    for piece in re.split(r"(?<=[.!?])[\"')]?\s+(?=[\"'(]?\w)", paragraph):
        if sentences and _ABBREVIATION.search(sentences[-1]):
            sentences[-1] += f" {piece}"
        else:
            sentences.append(piece)
    return [one.strip() for one in sentences if one.strip()]


def _about(candidate: Installed) -> frozenset[str]:
    # The Summary's words are what the author holds for essential; any sentence may have the name in it.
    return frozenset(_words(candidate.header("Summary") or "")) - frozenset(_words(candidate.name))


def _score(position: int, sentence: str, frequency: Counter[str], about: frozenset[str]) -> float:
    words = set(_words(sentence))
    if not words:
        return 0.0
    common = sum(math.log1p(frequency[word]) for word in words) / len(words)
    told = len(words & about) / (len(about) or 1)
    # "X is a …" is how authors introduce things.
    definition = 0.6 if re.search(r"\b(?:is|are|provides?|implements?|allows?|offers?)\b", sentence) else 0.0
    return 2.0 / (1 + 0.35 * position) + 0.5 * common + 1.5 * told + definition


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w[\w-]+", text.lower()) if word not in _STOP_WORDS]


def _is_prose(sentence: str) -> bool:
    if not MIN_CHARS <= len(sentence) <= MAX_CHARS or sentence[-1] not in ".!?\"')":
        return False
    letters = sum(char.isalpha() or char.isspace() for char in sentence)
    return letters / len(sentence) > 0.8 and len(sentence.split()) >= 4 and "://" not in sentence


def _without_blocks(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    text = re.sub(r"(?ms)^ *(```|~~~).*?^ *\1[^\n]*$", "", text)
    text = re.sub(r"(?is)<(pre|script|style|table|picture|svg|details)\b.*?</\1>", "", text)
    # A directive or comment of reStructuredText with its indented body, and literal blocks after "::".
    text = re.sub(r"(?m)^( *)\.\. [^\n]*(?:\n(?:\1 +[^\n]*| *(?=\n)))*", "", text)
    text = re.sub(r"(?m)::[ ]*\n(?:[ ]*\n)+(?:[ ]+[^\n]*(?:\n[ ]*(?=\n))*\n?)+", ":\n\n", text)
    text = re.sub(r"(?is)<(?:br|/?p|/?div|/?h\d|/?li|/?ul|hr)\b[^>]*>", "\n\n", text)
    # Images before links: a badge is an image in a link, and must leave nothing behind.
    text = re.sub(r"!\[[^\]]*\]\s*(?:\([^)]*\)|\[[^\]]*\])", "", text)
    return re.sub(r"(?s)</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>", "", text)


def _heading(lines: list[str]) -> tuple[str, int] | None:
    """The title and its number of lines when the block starts with a headline."""
    if match := re.match(r" {0,3}#{1,6}\s*(.*?)#*\s*$", lines[0]):
        return match.group(1), 1
    rule = re.compile(r"\s*([=\-~^\"'`*+#_:.])\1{2,}\s*$")
    if len(lines) > 2 and rule.match(lines[0]) and rule.match(lines[2]):
        return lines[1], 3
    if len(lines) > 1 and rule.match(lines[1]) and not rule.match(lines[0]):
        return lines[0], 2
    return ("", 1) if rule.match(lines[0]) else None


def _prose(lines: list[str]) -> str:
    if all(line.startswith("    ") for line in lines):
        return ""  # indented code
    kept = [
        line
        for line in lines
        if not re.match(r"\s*(\||\+[-=]|>>>|\$ |:[\w -]+:|\[[^\]]+\]:|[-*+•] |\d+[.)] )", line)
    ]
    if len(kept) < len(lines):
        # A list item may run over several lines; what is left of a list isn't a sentence.
        kept = [line for line in kept if not line.startswith("  ")]
    return _inline(" ".join(line.strip().removeprefix("> ") for line in kept))


def _inline(text: str) -> str:
    text = re.sub(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"`\1`", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`__?", r"\1", text)
    text = re.sub(r"`([^`<\s][^`<]*)`__?(?!\w)", r"\1", text)
    text = re.sub(r"\[([^\[\]]*)\]\s*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\])", r"\1", text)
    # Odd pieces are code spans: their underscores, stars and brackets mean themselves.
    pieces = re.split(r"(``[^`]+``(?!_)|`[^`]+`(?!_))", text)
    plain = [piece.strip("`") if at % 2 else _without_emphasis(piece) for at, piece in enumerate(pieces)]
    # A removed mark leaves a space before the full stop.
    return re.sub(r"\s+([.,;:)])(?=\s|$)", r"\1", " ".join("".join(plain).split()))


def _without_emphasis(text: str) -> str:
    text = re.sub(r"\|[^|\s][^|]*\|(?:__?)?", "", text)
    text = re.sub(r"`([^`]*)`_{0,2}", r"\1", text)
    text = re.sub(r"(?<!\w)(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", text)
    text = re.sub(r"(?<![\w*])[*_](?=\S)([^*_]+?)(?<=\S)[*_](?![\w*])", r"\1", text)
    text = re.sub(r"\b([a-zA-Z][\w-]*[a-zA-Z0-9])__?(?=[\s.,;)]|$)", r"\1", text)
    text = re.sub(r"(?<!\w)\[([^\[\]]+)\](?!\()", r"\1", text)
    return html.unescape(text).replace("\\", "")
