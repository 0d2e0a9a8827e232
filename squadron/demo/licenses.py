"""Under which licence a distribution comes, with the evidence for it and an honest "unknown"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from squadron.demo.inventory import Installed, find
from squadron.demo.spdx import (
    MAX_TEXT_CHARS,
    Category,
    Reading,
    category_of,
    flatten,
    license_ids,
    read_expression,
    read_name,
    read_text,
)

#: Licence files read per distribution; wheels that bundle a lot list dozens.
MAX_FILES = 24
#: Evidence travels in messages and reports, so both its number and its quotes stay short.
MAX_EVIDENCE, MAX_QUOTE_CHARS = 8, 120

#: Sentences that offer a choice between licences.
_CHOICE = re.compile(
    r"(?i)either of the (?:two )?licen[cs]es|dual[- ]licen[cs]ed?|either .{3,60} or .{3,40} at your option"
)
_LICENSE_FILE = re.compile(r"(?i)^(un)?licen[cs]e|^copying|^licen[cs]e|[-_.](un)?licen[cs]e(\.|$)")


class Evidence(BaseModel):
    """One place that says something about the licence, and a short quote of it."""

    model_config = ConfigDict(frozen=True)

    source: str
    text: str


class License(BaseModel):
    """What we believe the licence is; `spdx` is an SPDX expression or "unknown".

    `bundled` are licences of code that came inside, by files of its own or further down in the licence file.
    """

    model_config = ConfigDict(frozen=True)

    distribution: str
    version: str | None = None
    spdx: str = "unknown"
    category: Category = "unknown"
    confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    evidence: list[Evidence] = []
    bundled: list[str] = []


def classify(distribution: str) -> License:
    """Read the licence of an installed distribution from its metadata, classifiers and licence files.

    Raises:
        Terminal: the distribution isn't installed here.
    """
    candidate = find(distribution)
    files, bundled = _read_files(candidate)
    license_field = candidate.header("License") or ""
    choice = bool(_CHOICE.search(" ".join([flatten(license_field), *(one.text for one in files)])))
    readings = [
        *_from_expression(candidate.header("License-Expression")),
        *_from_field(license_field),
        *_from_classifiers(candidate.header_list("Classifier"), choice),
        *_join(files, choice),
    ]
    spdx, category, confidence, remark = _decide([one for one in readings if one.says_something])
    evidence = [_evidence(one) for one in readings]
    inside = _inside(files, bundled, spdx)
    if bundled:
        adds = ", ".join(inside) or "nothing new"
        evidence.append(
            Evidence(source="bundled code", text=f"files of its own such as {bundled[0].source} add: {adds}")
        )
    if remark:
        evidence.insert(0, Evidence(source="comparison", text=remark))
    return License(
        distribution=candidate.name,
        version=candidate.version,
        spdx=spdx,
        category=category,
        confidence=round(confidence, 2),
        evidence=evidence[:MAX_EVIDENCE],
        bundled=inside,
    )


def bundled_licenses(candidate: Installed) -> list[str]:
    """SPDX expressions of code that came inside a distribution, as far as its licence files tell."""
    files, bundled = _read_files(candidate)
    return _inside(files, bundled, "")


def states_license(candidate: Installed) -> bool:
    """Whether there is anything to read about a licence: a header, a classifier or a licence file."""
    return bool(
        candidate.header("License-Expression")
        or candidate.header("License")
        or any(one.startswith("License ::") for one in candidate.header_list("Classifier"))
        or next(_license_files(candidate), None)
    )


def _inside(files: list[Reading], bundled: list[Reading], spdx: str) -> list[str]:
    found = {one.spdx for one in bundled if one.spdx}.union(*(one.also for one in [*files, *bundled]))
    return sorted(found - license_ids(spdx))


def _from_expression(raw: str | None) -> Iterator[Reading]:
    if not raw:
        return
    if exact := read_expression(raw, "License-Expression", strength=0.95):
        yield exact
        return
    guess = read_name(raw, "License-Expression", strength=0.7)
    yield replace(guess, text=f"not a valid SPDX expression: {raw}")


def _from_field(raw: str) -> Iterator[Reading]:
    if not raw:
        return
    if "\n" not in raw and len(raw) <= MAX_QUOTE_CHARS:
        yield read_name(raw, "License field", strength=0.9)
        return
    recognised = read_text(raw, "License field")
    if not recognised.says_something:  # some authors give only the title and the copyright lines
        title = raw.strip().splitlines()[0]
        recognised = replace(read_name(title, "License field", strength=0.8), text=raw)
    yield recognised


def _from_classifiers(classifiers: Iterable[str], choice: bool) -> list[Reading]:
    labels = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License ::")]
    labels = [one for one in labels if one not in {"OSI Approved", "DFSG approved", "License"}]
    return _join([read_name(label, "classifier", strength=0.85) for label in labels], choice)


def _join(readings: list[Reading], choice: bool) -> list[Reading]:
    """Fold exact readings of one kind into one; nothing says how they relate unless `choice` does."""
    exact = [one for one in readings if one.spdx]
    rest = [one for one in readings if not one.spdx]
    ids = list(dict.fromkeys(one.spdx for one in exact))
    if len(ids) < 2:
        best = exact[:1]
        return [*(replace(one, also=one.also.union(*(more.also for more in exact))) for one in best), *rest]
    joined = (" OR " if choice else " AND ").join(ids)
    how = "a choice is stated" if choice else "relation not stated, read as AND"
    text = f"{', '.join(one.source.removeprefix('file ') for one in exact[:4])} ({how})"
    if exact[0].source == "classifier":
        text = f"{', '.join(one.text for one in exact)} ({how})"
    source = "files" if exact[0].source.startswith("file") else exact[0].source
    return [Reading(source, text, spdx=joined, strength=0.75 if choice else 0.6), *rest]


def _read_files(candidate: Installed) -> tuple[list[Reading], list[Reading]]:
    """The readings of the distribution's own licence files, and of those of code bundled in it."""
    own: list[Reading] = []
    bundled: list[Reading] = []
    for path, label in list(_license_files(candidate))[:MAX_FILES]:
        try:
            text = path.read_bytes()[: 4 * MAX_TEXT_CHARS].decode("utf-8", "replace")
        except OSError:
            continue
        if label.parent == PurePosixPath("."):
            own.append(read_text(text, f"file {label}"))
        elif (reading := read_text(text, str(label))).says_something:
            bundled.append(reading)
    return own, bundled


def _license_files(candidate: Installed) -> Iterator[tuple[Path, PurePosixPath]]:
    """Licence files as (path on disk, label); a label with a folder means: of bundled code."""
    seen: set[Path | PurePosixPath] = set()
    for path, label in _license_candidates(candidate):
        # The same text may be listed by License-File and stand in the package too.
        if seen.isdisjoint({path, label}) and path.is_file():
            seen |= {path, label}
            yield path, label


def _license_candidates(candidate: Installed) -> Iterator[tuple[Path, PurePosixPath]]:
    folder = candidate.folder
    for entry in candidate.header_list("License-File"):
        label = PurePosixPath(entry)
        if ".." in label.parts or label.is_absolute() or not _LICENSE_FILE.search(label.name):
            continue
        # PEP 639 keeps the path below licenses/; older setuptools put the bare file beside METADATA.
        yield folder / "licenses" / label, label
        yield folder / label.name, label
    for recorded in candidate.files or ():
        path = recorded.path
        if not _LICENSE_FILE.search(path.name) or path.suffix in {".py", ".pyc", ".pyi", ".json", ".so"}:
            continue
        if path.parts[0] == folder.name:
            inner = PurePosixPath(*path.parts[1:])
            yield (
                candidate.locate(path),
                inner.relative_to("licenses") if inner.parts[0] == "licenses" else inner,
            )
        elif path.parts[0] != "..":
            # pkg/LICENSE is the package's own; anything deeper came with bundled code.
            yield candidate.locate(path), PurePosixPath(path.name) if len(path.parts) < 3 else path
    if candidate.files is None and folder.is_dir():
        for found in sorted([*folder.iterdir(), *folder.glob("licenses/*")]):
            if _LICENSE_FILE.search(found.name):
                yield found, PurePosixPath(found.name)


def _decide(readings: list[Reading]) -> tuple[str, Category, float, str]:
    """The expression, its category, how sure we are, and a remark when sources disagree."""
    exact = next((one for one in readings if one.spdx), None)
    if exact is None:
        if not readings:
            return "unknown", "unknown", 0.0, ""
        # "BSD" alone is enough for the category, not for the expression.
        return "unknown", category_of(f"{readings[0].family}any"), 0.5, ""
    others = [one for one in readings if one is not exact]
    if exact.implied:
        # Someone who writes "or later" knows more than a bare "GPLv3".
        precise = (one for one in others if _same_version(one, exact) and not one.implied)
        exact = replace(exact, spdx=next((one.spdx for one in precise), exact.spdx))
    category = category_of(exact.spdx)
    confidence, disagreeing = exact.strength, []
    for other in others:
        change = _weigh(exact, other, category)
        confidence += change
        if change < 0:
            disagreeing.append(f"{other.source} ({other.spdx or other.family + '*'})")
    remark = f"{exact.source} ({exact.spdx}) is not confirmed by {', '.join(disagreeing)}" if disagreeing else ""
    if exact.implied and exact.spdx.endswith("-only"):
        remark = f"{remark}; " if remark else ""
        remark += f"{exact.source} does not say whether later versions are allowed, read as {exact.spdx}"
        confidence -= 0.1
    return exact.spdx, category, min(0.99, max(0.1, confidence)), remark


def _same_version(one: Reading, other: Reading) -> bool:
    return bool(one.spdx) and _bases(one.spdx) == _bases(other.spdx)


def _bases(spdx: str) -> frozenset[str]:
    return frozenset(re.sub(r"-(only|or-later)$", "", one) for one in license_ids(spdx))


def _weigh(exact: Reading, other: Reading, category: Category) -> float:
    """How much another source adds to our confidence, or takes from it."""
    ours, theirs = _bases(exact.spdx), _bases(other.spdx)
    if other.family:
        return 0.05 if any(one.startswith(other.family) for one in ours) else -0.35
    if theirs <= ours:
        return 0.05
    if ours & (theirs | _bases(" ".join(other.also))) and category_of(other.spdx) == category:
        return -0.15  # it says more than ours, but asks for nothing else
    return -0.25 if category_of(other.spdx) == category else -0.4


def _evidence(reading: Reading) -> Evidence:
    meaning = reading.spdx or (f"{reading.family}*, which one is not said" if reading.family else "not recognised")
    quote = " ".join(reading.text.split())
    if len(quote) > MAX_QUOTE_CHARS:
        quote = quote[: MAX_QUOTE_CHARS - 1] + "…"
    also = f"; further down also {', '.join(sorted(reading.also))}" if reading.also else ""
    return Evidence(source=reading.source, text=f"{meaning}: {quote}{also}")
