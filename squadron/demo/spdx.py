"""Licence names, texts and categories: from what people write to SPDX expressions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

Category = Literal["permissive", "weak copyleft", "strong copyleft", "proprietary", "public domain", "unknown"]

#: A licence text is read up to here; the longest one (AGPL-3.0) has 34 kB, some files append many others.
MAX_TEXT_CHARS = 120_000
#: From the least to the most demanding: OR lets us choose the first, AND makes us obey the last.
#: Unknown stands below strong copyleft, so that "GPL AND something odd" still rings the bell.
_DEMANDS: list[Category] = [
    "public domain",
    "permissive",
    "weak copyleft",
    "unknown",
    "strong copyleft",
    "proprietary",
]

_CATEGORIES: list[tuple[Category, str]] = [
    ("public domain", r"CC0-1\.0|Unlicense|CC-PDDC|PDDL-1\.0|blessing|LicenseRef-Public-Domain"),
    (
        "proprietary",
        r"LicenseRef-.*(?:proprietary|commercial|nvidia).*|BUSL-1\.1|SSPL-1\.0|Elastic-2\.0|CC-BY-NC-.*|PolyForm-.*",
    ),
    ("weak copyleft", r"LGPL-.*|MPL-.*|EPL-.*|CDDL-.*|CPL-1\.0|APSL-.*|IPL-1\.0|MS-RL|Artistic-1\..*"),
    (
        "strong copyleft",
        r"A?GPL-.*|EUPL-.*|OSL-.*|CECILL-2\..*|CECILL-1\..|CC-BY-SA-.*|Sleepycat|QPL-1\.0|RPL-.*",
    ),
    (
        "permissive",
        r"MIT(?:-.*)?|BSD-.*|0BSD|Apache-.*|ISC|PSF-.*|Python-2\.0.*|CNRI-.*|Zlib|zlib-.*|HPND.*|NCSA|BSL-1\.0|"
        r"Artistic-2\.0|AFL-.*|ZPL-.*|X11|Unicode-.*|OFL-.*|CC-BY-[34]\.0|WTFPL|UPL-1\.0|MS-PL|MulanPSL-.*|curl|"
        r"Libpng|libpng-2\.0|FTL|BlueOak-1\.0\.0|CECILL-B|EFL-.*|W3C.*|TCL|PostgreSQL|OpenSSL|IJG|FSFAP|bzip2-.*",
    ),
]
#: Exceptions that let other code link to the work without taking over its licence.
_LINKING_EXCEPTIONS = re.compile(
    r"(?i)(classpath|gcc|llvm|openjdk|bison|autoconf|libtool|font|.*linking).*exception.*"
)

_BSD3_NAMES = ("bsd 3 clause", "3 clause bsd", "new bsd", "modified bsd", "revised bsd", "bsd new", "bsd 3")
_BSD2_NAMES = ("bsd 2 clause", "2 clause bsd", "simplified bsd", "freebsd", "bsd 2", "bsd simplified")
_ALIASES: dict[str, str] = {
    **dict.fromkeys(_BSD3_NAMES, "BSD-3-Clause"),
    **dict.fromkeys(_BSD2_NAMES, "BSD-2-Clause"),
    **dict.fromkeys(("mit", "expat", "mit expat", "mit x11", "x11 mit"), "MIT"),
    **dict.fromkeys(("mit 0", "mit no attribution"), "MIT-0"),
    **dict.fromkeys(("apache 2.0", "apache 2", "apache2", "apache2.0", "asl 2.0", "asl 2"), "Apache-2.0"),
    **dict.fromkeys(("apache software 2.0", "apache software 2", "al2"), "Apache-2.0"),
    **dict.fromkeys(("isc", "iscl"), "ISC"),
    **dict.fromkeys(("psf", "psfl", "psf 2.0", "python software foundation", "psf2"), "PSF-2.0"),
    **dict.fromkeys(("mpl 2.0", "mpl 2", "mpl2", "mpl2.0", "mozilla public 2.0", "mozilla 2.0"), "MPL-2.0"),
    **dict.fromkeys(("epl 2.0", "eclipse public 2.0"), "EPL-2.0"),
    **dict.fromkeys(("unlicense", "un", "unlicensed public domain"), "Unlicense"),
    **dict.fromkeys(("cc0", "cc0 1.0", "cc0 1.0 universal"), "CC0-1.0"),
    **dict.fromkeys(("zlib", "zlib libpng"), "Zlib"),
    **dict.fromkeys(("zpl 2.1", "zope public 2.1", "zpl2.1"), "ZPL-2.1"),
    **dict.fromkeys(("boost 1.0", "boost software 1.0", "bsl 1.0"), "BSL-1.0"),
    **dict.fromkeys(("hpnd", "historical permission notice and disclaimer"), "HPND"),
    **dict.fromkeys(("public domain", "publicdomain"), "LicenseRef-Public-Domain"),
    **dict.fromkeys(("proprietary", "other proprietary", "commercial", "closed source"), "LicenseRef-Proprietary"),
    **dict.fromkeys(("nvidia proprietary", "nvidia proprietary software"), "LicenseRef-NVIDIA-Proprietary"),
    **dict.fromkeys(("wtfpl", "do what the fuck you want to public"), "WTFPL"),
    **dict.fromkeys(("university of illinois ncsa open source", "ncsa"), "NCSA"),
    "0bsd": "0BSD",
    "artistic 2.0": "Artistic-2.0",
    "european union public 1.2": "EUPL-1.2",
}
#: Names that say a family and leave the member open; PEP 639 calls their classifiers ambiguous.
_FAMILIES: dict[str, str] = {
    **dict.fromkeys(("bsd", "bsd style", "bsd like", "bsd derived"), "BSD-"),
    **dict.fromkeys(("apache", "apache software", "asl", "apache style"), "Apache-"),
    **dict.fromkeys(("mpl", "mozilla public", "mozilla"), "MPL-"),
    **dict.fromkeys(("zope public", "zpl"), "ZPL-"),
    "eclipse public": "EPL-",
    "academic free": "AFL-",
    "artistic": "Artistic-",
}
_GPL_NAME = re.compile(
    r"(?:gnu )?(?:(?P<kind>affero|lesser|library)(?: or lesser)? )?(?:general public|(?P<short>[al]?)gpl)"
    r"(?: ?(?P<version>\d(?:\.\d)?))?"
    r"(?: ?(?P<later>\+|or (?:any )?(?:later|newer|greater)(?: version)?))?(?: only)?"
)
_GPL_NOTICE = (
    r"GNU (?P<kind>Lesser |Library |Affero )?General Public License,? "
    r"as published by the Free Software Foundation[;,:]? ?(?:either |only )?"
    r"version (?P<version>\d(?:\.\d)?)(?: of the License)?"
    r"(?P<later>,? ?(?:or \(at your option\)|or,? at your option,?) any later)?"
)
_GPL_TITLE = r"GNU (?P<kind>LESSER |LIBRARY |AFFERO )?GENERAL PUBLIC LICENSE,? Version (?P<version>\d(?:\.\d)?),? "
#: Characteristic sentences; searched without regard to case, in a text of single spaces.
_SENTENCES: list[tuple[str, str]] = [
    ("GPL", _GPL_NOTICE),
    ("GPL", _GPL_TITLE + r"(?:\d+ )?(?:June|November|February) \d{4}"),
    (
        "MIT",
        r"Permission is hereby granted, free of charge, to any person obtaining a copy of",
    ),
    ("BSD", r"Redistributions? of source code must retain the (?:above )?(?:accompanying )?copyright"),
    (
        "Apache-2.0",
        r"Apache License,? Version 2\.0,? January 2004|Licensed under the Apache License,? Version 2\.0",
    ),
    ("MPL-2.0", r"Mozilla Public License,? (?:Version|v\.) ?2\.0"),
    ("EPL-2.0", r"Eclipse Public License - v 2\.0"),
    (
        "ISC",
        r"Permission to use, copy, modify, and(?:/or)? distribute this software for any purpose with",
    ),
    (
        "HPND",
        r"Permission to use, copy, modify,? and distribute this software and its documentation",
    ),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
    ("Unlicense", r"This is free and unencumbered software released into the public domain"),
    ("CC0-1.0", r"CC0 1\.0 Universal|Creative Commons (?:CC0|Zero)"),
    ("Zlib", r"Altered source versions must be plainly marked as such"),
    ("BSL-1.0", r"Boost Software License - Version 1\.0"),
    ("WTFPL", r"DO WHAT THE FUCK YOU WANT TO PUBLIC LICENSE"),
]
_SENTENCE_PATTERNS = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _SENTENCES]


@dataclass(frozen=True)
class Reading:
    """What one source says: an exact `spdx`, or only a `family` such as "BSD-", or neither.

    `implied` marks a "-only" that nobody wrote, as in "GPLv2"; `also` are licences further down in a file.
    """

    source: str
    text: str
    spdx: str = ""
    family: str = ""
    implied: bool = False
    also: frozenset[str] = field(default_factory=frozenset)
    strength: float = 0.0

    @property
    def says_something(self) -> bool:
        """Whether a licence, or at least a family of them, was recognised."""
        return bool(self.spdx or self.family)


def category_of(spdx: str) -> Category:
    """What an SPDX expression asks of us: AND adds demands, OR lets us choose the mildest."""
    tokens = re.findall(r"[()]|[^\s()]+", spdx)
    if not tokens or spdx == "unknown":
        return "unknown"
    category, _ = _any_of(tokens, 0)
    return category


def license_ids(spdx: str) -> frozenset[str]:
    """The licence ids of an expression, without operators and exceptions."""
    plain = re.sub(r"\sWITH\s+[^\s()]+", "", spdx)
    return frozenset(one for one in re.findall(r"[^\s()]+", plain) if one not in {"AND", "OR", "unknown"})


def _any_of(tokens: list[str], at: int) -> tuple[Category, int]:
    category, at = _all_of(tokens, at)
    while at < len(tokens) and tokens[at] == "OR":
        other, at = _all_of(tokens, at + 1)
        category = min(category, other, key=_DEMANDS.index)
    return category, at


def _all_of(tokens: list[str], at: int) -> tuple[Category, int]:
    category, at = _term(tokens, at)
    while at < len(tokens) and tokens[at] == "AND":
        other, at = _term(tokens, at + 1)
        category = max(category, other, key=_DEMANDS.index)
    return category, at


def _term(tokens: list[str], at: int) -> tuple[Category, int]:
    if at >= len(tokens):
        return "unknown", at
    if tokens[at] == "(":
        category, at = _any_of(tokens, at + 1)
        return category, at + 1
    name = tokens[at]
    category = next((one for one, ids in _CATEGORIES if re.fullmatch(ids, name, re.IGNORECASE)), "unknown")
    if at + 2 < len(tokens) and tokens[at + 1] == "WITH":
        if category == "strong copyleft" and _LINKING_EXCEPTIONS.fullmatch(tokens[at + 2]):
            category = "weak copyleft"
        at += 2
    return category, at + 1


def read_expression(raw: str, source: str, *, strength: float) -> Reading | None:
    """Read a valid SPDX expression; None when it isn't one."""
    try:
        canonical = str(canonicalize_license_expression(raw))
    except InvalidLicenseExpression:
        return None
    # Today's ids say "only" or "or later"; the deprecated bare ones said neither.
    later = re.sub(r"\b([AL]?GPL-\d\.\d)\+", r"\1-or-later", canonical)
    spdx = re.sub(r"\b([AL]?GPL-\d\.\d)(?![\d.\w-])", r"\1-only", later)
    return Reading(source, raw, spdx=spdx, implied=spdx != later, strength=strength)


def read_name(raw: str, source: str, *, strength: float) -> Reading:
    """Recognise a short name: an SPDX expression, an alias, a family, or a list of those."""
    if exact := read_expression(raw, source, strength=strength):
        return exact
    reading = Reading(source, raw)
    # A parenthesis at the end repeats the name in short, "GNU General Public License v3 (GPLv3)", or belongs
    # to it, "GPL (>= 2)": the whole goes first.
    for name in dict.fromkeys((_normalise_name(raw), _normalise_name(re.sub(r"\s*\([^()]*\)$", "", raw)))):
        if spdx := _ALIASES.get(name, ""):
            return replace(reading, spdx=spdx, strength=strength)
        if family := _FAMILIES.get(name, ""):
            return replace(reading, family=family, strength=strength)
        if match := _GPL_NAME.fullmatch(name):
            return _gpl(reading, match, strength)
    for separator, operator in ((r"\s+or\s+|\s*/\s*", " OR "), (r"\s+and\s+|\s*[,;&+]\s*", " AND ")):
        parts = [part for part in re.split(separator, raw, flags=re.IGNORECASE) if part.strip()]
        # "Apache License, Version 2.0" has a comma, but it was found in the table above.
        if len(parts) > 1:
            found = [read_name(part, source, strength=strength) for part in parts]
            if all(one.spdx for one in found):
                spdx = operator.join(dict.fromkeys(one.spdx for one in found))
                return replace(reading, spdx=spdx, strength=strength - 0.15)
    return reading


def _normalise_name(raw: str) -> str:
    text = raw.lower().replace("licence", "license").replace("'", "")
    text = re.sub(r">=\s*(\d(?:\.\d)?)", r"\1+", text)
    text = re.sub(r"\bversion\s*(?=\d)|v\.?\s*(?=\d)", "", text)
    text = re.sub(r"\b(?:the|licenses?|licensed|under|terms of)\b", " ", text)
    return " ".join(re.sub(r"[^a-z0-9.+]+", " ", text).split()).rstrip(".")


def _gpl(reading: Reading, match: re.Match[str], strength: float) -> Reading:
    groups = match.groupdict()
    kind = (groups.get("kind") or groups.get("short") or "").strip().lower()
    prefix = {"a": "AGPL", "affero": "AGPL", "l": "LGPL", "lesser": "LGPL", "library": "LGPL"}.get(kind, "GPL")
    if not groups["version"]:
        return replace(reading, family=f"{prefix}-", strength=strength)
    version = groups["version"] if "." in groups["version"] else f"{groups['version']}.0"
    later = bool(groups.get("later"))
    stated = later or match.group(0).endswith("only")
    spdx = f"{prefix}-{version}-{'or-later' if later else 'only'}"
    return replace(reading, spdx=spdx, implied=not stated, strength=strength)


def read_text(text: str, source: str) -> Reading:
    """Recognise a licence by its characteristic sentences; the first one in the text is the licence."""
    flat = flatten(text[:MAX_TEXT_CHARS])
    hits: list[tuple[int, Reading]] = []
    for name, pattern in _SENTENCE_PATTERNS:
        if match := pattern.search(flat):
            hits.append((match.start(), _refine(name, match, flat, source)))
    if not hits:  # some files hold no more than a name, such as "Apache 2.0"
        title = next((line for line in text.splitlines() if line.strip()), "")
        return replace(read_name(title.strip()[:120], source, strength=0.6), text=flat[:400])
    hits.sort(key=lambda hit: hit[0])
    first = hits[0][1]
    # The GPL's own appendix shows an "or later" notice as an example; it grants nothing.
    appendix = first.spdx.replace("-only", "-or-later")
    also = {one.spdx for _, one in hits[1:] if one.spdx} - {first.spdx, appendix}
    if "GCC RUNTIME LIBRARY EXCEPTION" in flat and (gpl := {one for one in also if one.startswith("GPL-3.0")}):
        also = (also - gpl) | {"GPL-3.0-or-later WITH GCC-exception-3.1"}
    return replace(first, also=frozenset(also))


def _refine(name: str, match: re.Match[str], flat: str, source: str) -> Reading:
    reading = Reading(source, match.group(0), spdx=name, strength=0.8)
    # Two thousand characters are the longest of the short licences, and seldom reach the next one.
    rest = flat[match.start() : match.start() + 2_000].lower()
    if name == "GPL":
        return _gpl(reading, match, 0.8)
    if name == "MIT":
        return reading if "shall be included in all copies" in rest else replace(reading, spdx="MIT-0")
    if name == "ISC":
        return reading if "provided that the above" in rest[:400] else replace(reading, spdx="0BSD")
    if name == "BSD":
        if "all advertising materials mentioning" in rest:
            return replace(reading, spdx="BSD-4-Clause")
        if "used to endorse or promote" in rest:
            return replace(reading, spdx="BSD-3-Clause")
        # One clause only is rare, but real; without the binary clause it isn't BSD-2-Clause.
        return replace(reading, spdx="BSD-2-Clause" if "binary form" in rest else "BSD-1-Clause")
    return reading


def flatten(text: str) -> str:
    """The text in single spaces, without comment marks and Markdown emphasis, with plain quotes."""
    plain = text.replace("\u201c", '"').replace("\u201d", '"').replace("\u2019", "'")
    return " ".join(re.sub(r"[*_#>|`]+|^\s*(?://|;+|--+)", " ", plain, flags=re.MULTILINE).split())
