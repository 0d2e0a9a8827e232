"""The audit as a document for people (Markdown) and as data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, ValidationError

from squadron.demo.inventory import Distribution, Installation
from squadron.demo.licenses import License
from squadron.demo.risks import LEVELS, Level, RiskAssessment
from squadron.demo.summaries import PackageSummary

R = TypeVar("R", License, PackageSummary, RiskAssessment)

#: Below this a person should look at the licence; one serious conflict between sources gets it there.
LOW_CONFIDENCE = 0.7
#: One line of the big table; longer ones make it unreadable in every viewer.
MAX_CELL_CHARS = 110
#: Names listed in one sentence before "and 12 more".
MAX_NAMES = 12


class AuditReport(BaseModel):
    """The finished audit: a Markdown document, and the same facts as JSON."""

    model_config = ConfigDict(frozen=True)

    markdown: str
    data: dict[str, Any]


@dataclass
class _Row:
    """All we know about one distribution; None where a result is missing."""

    distribution: Distribution
    license: License | None = None
    summary: PackageSummary | None = None
    risk: RiskAssessment | None = None

    @property
    def level(self) -> Level:
        return self.risk.level if self.risk else "none"

    @property
    def spdx(self) -> str:
        return self.license.spdx if self.license else "not assessed"

    @property
    def unsure(self) -> bool:
        found = self.license
        return found is not None and (found.spdx == "unknown" or found.confidence < LOW_CONFIDENCE)


@dataclass
class _Audit:
    goal: str
    inventory: Installation
    rows: list[_Row]
    missing: list[dict[str, str]] = field(default_factory=list)


def write(
    inventory: Installation | Mapping[str, Any],
    licenses: Sequence[Any] = (),
    summaries: Sequence[Any] = (),
    risks: Sequence[Any] = (),
    *,
    goal: str = "",
) -> AuditReport:
    """Put the results of an audit together.

    Every list may hold models, their JSON objects, or failure markers such as
    `{"failed": "timed_out", "reason": "…", "input": {"distribution": "…"}}`. What is missing or unreadable
    is listed under "Not assessed"; nothing of that kind raises.
    """
    audit = _collect(inventory, licenses, summaries, risks, goal)
    sections = [
        _headline(audit),
        _needs_attention(audit),
        _license_table(audit),
        _not_assessed(audit),
        _distribution_table(audit),
        _evidence(audit),
        _undetermined(audit),
    ]
    return AuditReport(markdown="\n\n".join(one for one in sections if one) + "\n", data=_data(audit))


def _collect(
    inventory: Installation | Mapping[str, Any],
    licenses: Sequence[Any],
    summaries: Sequence[Any],
    risks: Sequence[Any],
    goal: str,
) -> _Audit:
    missing: list[dict[str, str]] = []
    found_licenses = _read_all(License, licenses, "licence", missing)
    found_summaries = _read_all(PackageSummary, summaries, "summary", missing)
    found_risks = _read_all(RiskAssessment, risks, "risk", missing)
    known = _read_inventory(inventory, missing)
    listed = {canonicalize_name(one.name): one for one in known.distributions}
    # Results without an inventory entry still deserve a line: the inventory may be what failed.
    strays: list[License | PackageSummary | RiskAssessment] = [
        *found_licenses.values(),
        *found_summaries.values(),
        *found_risks.values(),
    ]
    for stray in strays:
        version = stray.version if isinstance(stray, License) else None
        bare = Distribution(name=stray.distribution, version=version)
        listed.setdefault(canonicalize_name(stray.distribution), bare)
    failed = {(canonicalize_name(one["distribution"]), one["what"]) for one in missing}
    rows = []
    for key, distribution in sorted(listed.items()):
        row = _Row(distribution, found_licenses.get(key), found_summaries.get(key), found_risks.get(key))
        rows.append(row)
        have: dict[str, BaseModel | None] = {"licence": row.license, "summary": row.summary, "risk": row.risk}
        missing += [
            {"distribution": distribution.name, "what": what, "reason": "no result was delivered"}
            for what, result in have.items()
            if result is None and (key, what) not in failed
        ]
    return _Audit(goal, known, rows, missing)


def _read_inventory(raw: Installation | Mapping[str, Any], missing: list[dict[str, str]]) -> Installation:
    if isinstance(raw, Installation):
        return raw
    try:
        return Installation.model_validate(raw)
    except ValidationError as error:
        reason = _failure(raw) or f"unreadable: {_first_problem(error)}"
        missing.append({"distribution": "", "what": "inventory", "reason": reason})
        return Installation(python="unknown", platform="unknown", distributions=[])


def _read_all(model: type[R], results: Sequence[Any], what: str, missing: list[dict[str, str]]) -> dict[str, R]:
    found: dict[str, R] = {}
    # One failure marker may stand for the whole list.
    for raw in [results] if isinstance(results, Mapping) else results or ():
        name, reason = _name_in(raw), _failure(raw)
        if not reason:
            try:
                result = model.model_validate(raw)
            except ValidationError as error:
                reason = f"unreadable: {_first_problem(error)}"
            else:
                found[canonicalize_name(result.distribution)] = result
                continue
        missing.append({"distribution": name, "what": what, "reason": reason})
    # A retried task may have left both its failure and its result.
    missing[:] = [
        one for one in missing if one["what"] != what or canonicalize_name(one["distribution"]) not in found
    ]
    return found


def _failure(raw: Any) -> str:
    if not isinstance(raw, Mapping) or not raw.get("failed"):
        return ""
    failed, reason = str(raw["failed"]), str(raw.get("reason") or "")
    return f"{failed}: {reason}" if reason else failed


def _name_in(raw: Any) -> str:
    if isinstance(raw, Mapping):
        asked = raw.get("input")
        source = asked if isinstance(asked, Mapping) and asked.get("distribution") else raw
        return str(source.get("distribution") or "")
    return str(getattr(raw, "distribution", ""))


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'result'}: {first['msg']}"


def _headline(audit: _Audit) -> str:
    rows = audit.rows
    levels = Counter(row.level for row in rows if row.risk)
    unsure = sum(row.unsure for row in rows)
    native = sum(bool(row.distribution.has_native_code) for row in rows)
    size = sum(row.distribution.size_bytes or 0 for row in rows) / 1e6
    lines = [
        "# Dependency audit",
        "",
        *([f"> {_cell(audit.goal, 500)}", ""] if audit.goal else []),
        f"Python {_cell(audit.inventory.python)} on {_cell(audit.inventory.platform)}.",
        "",
        f"- **{len(rows)}** distributions, {size:,.1f} MB recorded, {native} with compiled code",
        f"- risk: {', '.join(f'**{levels[level]}** {level}' for level in reversed(LEVELS))}",
        f"- licence unknown or doubtful: **{unsure}**",
        f"- not assessed: **{len(audit.missing)}** results missing",
    ]
    return "\n".join(lines)


def _needs_attention(audit: _Audit) -> str:
    serious = [row for row in audit.rows if row.risk and LEVELS.index(row.level) >= LEVELS.index("medium")]
    serious.sort(key=lambda row: (-LEVELS.index(row.level), canonicalize_name(row.distribution.name)))
    lines = ["## Needs attention", ""]
    cells = []
    for row in serious:
        findings = [one for one in (row.risk.findings if row.risk else []) if one.level in {"medium", "high"}]
        why = "; ".join(f"{one.kind}: {one.detail}" for one in findings)
        cells.append([row.level, *_identity(row), _cell(row.spdx), _cell(why, 400)])
    if cells:
        lines.append(_table(["Level", "Distribution", "Version", "Licence", "Why"], cells))
    else:
        lines.append("Nothing of medium or high risk was found in what was assessed.")
    minor: dict[str, list[str]] = {}
    for row in audit.rows:
        for finding in row.risk.findings if row.risk else []:
            if finding.level == "low":
                minor.setdefault(finding.kind, []).append(row.distribution.name)
    if minor:
        lines += ["", "Minor findings:", ""]
        lines += [f"- {kind} ({len(names)}): {_names(names)}" for kind, names in sorted(minor.items())]
    return "\n".join(lines)


def _license_table(audit: _Audit) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for row in audit.rows:
        if row.license:
            groups.setdefault((row.license.spdx, row.license.category), []).append(row.distribution.name)
    if not groups:
        return ""
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    cells = [[_cell(spdx), category, str(len(names)), _names(names, 4)] for (spdx, category), names in ordered]
    return "## Licences\n\n" + _table(["Licence", "Category", "Count", "Distributions"], cells)


def _not_assessed(audit: _Audit) -> str:
    if not audit.missing:
        return ""
    cells = [
        [_cell(one["distribution"]) or "?", one["what"], _cell(one["reason"], 200)]
        for one in sorted(audit.missing, key=lambda one: (one["distribution"].lower(), one["what"]))
    ]
    return "## Not assessed\n\n" + _table(["Distribution", "What", "Reason"], cells)


def _distribution_table(audit: _Audit) -> str:
    cells = []
    for row in audit.rows:
        text = (row.summary.summary if row.summary else "") or row.distribution.summary or ""
        confidence = f"{row.license.confidence:.2f}" if row.license else "-"
        level = row.level if row.risk else "not assessed"
        cells.append([*_identity(row), _cell(row.spdx), confidence, level, _cell(text)])
    heads = ["Distribution", "Version", "Licence", "Confidence", "Risk", "What it is"]
    return "## Distributions\n\n" + (_table(heads, cells) if cells else "None.")


def _evidence(audit: _Audit) -> str:
    lines: list[str] = []
    for row in audit.rows:
        if row.license and row.unsure:
            found = row.license
            lines += [
                "",
                f"**{_cell(found.distribution)}**: {_cell(found.spdx)}, confidence {found.confidence:.2f}",
                "",
            ]
            lines += [f"- {_cell(one.source)}: {_cell(one.text, 240)}" for one in found.evidence]
            if not found.evidence:
                lines.append("- no licence header, classifier or licence file")
    return "\n".join(["## Evidence for unknown or doubtful licences", *lines]) if lines else ""


def _undetermined(audit: _Audit) -> str:
    def names(lacks: Callable[[_Row], bool]) -> list[str]:
        return [row.distribution.name for row in audit.rows if lacks(row)]

    checks = {
        "licence": names(lambda row: row.spdx == "unknown"),
        "version": names(lambda row: row.distribution.version is None),
        "size, no RECORD": names(lambda row: row.distribution.size_bytes is None),
        "compiled code": names(lambda row: row.distribution.has_native_code is None),
        "home page": names(lambda row: row.distribution.home_page is None),
        "purpose": names(lambda row: row.summary is not None and not row.summary.summary),
    }
    lines = [f"- {what} ({len(found)}): {_names(found)}" for what, found in checks.items() if found]
    lines.append(
        "- known vulnerabilities, yanked releases and maintenance: not looked at; this audit reads only "
        "what is on disk and asks no index"
    )
    return "\n".join(["## What could not be determined", "", *lines])


def _data(audit: _Audit) -> dict[str, Any]:
    rows = audit.rows
    return {
        "goal": audit.goal,
        "python": audit.inventory.python,
        "platform": audit.inventory.platform,
        "counts": {
            "distributions": len(rows),
            "risk": {level: sum(bool(row.risk) and row.level == level for row in rows) for level in LEVELS},
            "licenses": dict(Counter(row.license.spdx for row in rows if row.license).most_common()),
            "doubtful_licenses": sum(row.unsure for row in rows),
            "not_assessed": len(audit.missing),
        },
        "not_assessed": audit.missing,
        "distributions": [_entry(row) for row in rows],
    }


def _entry(row: _Row) -> dict[str, Any]:
    found = row.license
    return {
        "name": row.distribution.name,
        "version": row.distribution.version,
        "spdx": found.spdx if found else None,
        "category": found.category if found else None,
        "confidence": found.confidence if found else None,
        # Undisputed licences need no proof here; leaving it out keeps large audits below message limits.
        "evidence": [one.model_dump() for one in found.evidence] if found and row.unsure else [],
        "risk": row.risk.level if row.risk else None,
        "findings": [one.model_dump() for one in row.risk.findings] if row.risk else [],
        "summary": row.summary.summary if row.summary else None,
    }


def _identity(row: _Row) -> tuple[str, str]:
    return _cell(row.distribution.name), _cell(row.distribution.version or "?")


def _names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    shown = ", ".join(_cell(one) for one in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'--|' * len(heads)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str, limit: int = MAX_CELL_CHARS) -> str:
    """One line of harmless Markdown: packages choose these words, so they may not make markup."""
    flat = " ".join(text.split())
    if len(flat) > limit:
        flat = flat[: limit - 1].rsplit(" ", 1)[0] + "…"
    for mark in "\\|`*[]<>":
        flat = flat.replace(mark, f"\\{mark}")
    return flat
