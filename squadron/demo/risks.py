"""What a reviewer should worry about in one distribution, with a reason for each worry."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict

from squadron.demo.inventory import Installed, find, has_native_code, missing_metadata
from squadron.demo.licenses import bundled_licenses, states_license
from squadron.demo.spdx import category_of, license_ids

Level = Literal["none", "low", "medium", "high"]
#: From harmless to serious; the level of an assessment is that of its worst finding.
LEVELS: list[Level] = ["none", "low", "medium", "high"]
#: Licences that clash with Apache-2.0's patent clause (see
#: https://www.apache.org/licenses/GPL-compatibility.html).
_CLASHES_WITH_APACHE = frozenset({"GPL-2.0-only", "AGPL-1.0-only"})


class Risk(BaseModel):
    """One worry: its `kind` is a stable word for grouping, its `detail` is for people."""

    model_config = ConfigDict(frozen=True)

    kind: str
    level: Level
    detail: str


class RiskAssessment(BaseModel):
    """The findings about one distribution, worst first; `level` is the worst of them."""

    model_config = ConfigDict(frozen=True)

    distribution: str
    level: Level
    findings: list[Risk] = []


def assess(
    distribution: str,
    spdx: str = "unknown",
    category: str = "unknown",
    project_license: str = "Apache-2.0",
) -> RiskAssessment:
    """Judge an installed distribution for use in a project under `project_license`.

    Args:
        spdx: The SPDX expression found by `licenses.classify`, or "unknown".
        category: Its category; when it is "unknown", the one of `spdx` counts.

    Raises:
        Terminal: the distribution isn't installed here.
    """
    candidate = find(distribution)
    findings = [
        *_license_findings(candidate, spdx, category, project_license),
        *_bundled_findings(candidate, spdx),
        *_release_findings(candidate),
        *_requirement_findings(candidate),
        *_origin_findings(candidate),
    ]
    findings.sort(key=lambda one: -LEVELS.index(one.level))
    level = findings[0].level if findings else "none"
    return RiskAssessment(distribution=candidate.name, level=level, findings=findings)


def _license_findings(candidate: Installed, spdx: str, category: str, project: str) -> Iterator[Risk]:
    kind = category if category != "unknown" else category_of(spdx)
    ours = category_of(project)
    match kind:
        case "unknown" if not states_license(candidate):
            yield Risk(
                kind="missing licence",
                level="high",
                detail="neither metadata nor files state a licence; without one nobody may copy it",
            )
        case "unknown":
            yield Risk(
                kind="unknown licence",
                level="medium",
                detail=f"a licence is stated, but {spdx!r} is not one we can place; read it by hand",
            )
        case "proprietary":
            yield Risk(kind="proprietary", level="high", detail=f"{spdx} needs its terms read and accepted")
        case "strong copyleft":
            yield _strong_copyleft(spdx, ours, project)
        case "weak copyleft" if ours not in {"weak copyleft", "strong copyleft"}:
            yield Risk(
                kind="weak copyleft",
                level="low",
                detail=f"{spdx}: fine to depend on; changes to its own files must be published",
            )
        case _ if spdx == "unknown":
            yield Risk(kind="vague licence", level="low", detail=f"{kind}, but the exact licence is not stated")
    if _CLASHES_WITH_APACHE & license_ids(project) and "Apache-2.0" in license_ids(spdx) and " OR " not in spdx:
        detail = f"{spdx} can't be combined with {project}: the FSF holds its patent clause for a restriction"
        yield Risk(kind="licence clash", level="high", detail=detail)


def _strong_copyleft(spdx: str, ours: str, project: str) -> Risk:
    if ours == "strong copyleft":
        same = bool(license_ids(spdx) & license_ids(project))
        detail = f"{spdx} in a {project} project: {'the same terms' if same else 'check that the versions fit'}"
        return Risk(kind="strong copyleft", level="none" if same else "medium", detail=detail)
    against_apache = license_ids(spdx) & _CLASHES_WITH_APACHE and "Apache-2.0" in license_ids(project)
    clash = ", whose terms clash" if against_apache else ""
    return Risk(
        kind="strong copyleft",
        level="high",
        detail=(
            f"{spdx} in a project under {project}{clash}: code combined with it must be distributed "
            "under its terms; a program that is only started as a separate process usually is not; "
            "have that confirmed"
        ),
    )


def _bundled_findings(candidate: Installed, spdx: str) -> Iterator[Risk]:
    demanding = [
        one
        for one in bundled_licenses(candidate)
        if category_of(one) in {"weak copyleft", "strong copyleft", "proprietary"} and one not in spdx
    ]
    if demanding:
        strong = any(category_of(one) != "weak copyleft" for one in demanding)
        detail = f"licence files mention {', '.join(demanding)} for code inside; matters when you redistribute it"
        yield Risk(kind="bundled copyleft", level="medium" if strong else "low", detail=detail)


def _release_findings(candidate: Installed) -> Iterator[Risk]:
    if missing := missing_metadata(candidate):
        detail = f"METADATA has no {', '.join(missing)}; who made it, and for what?"
        yield Risk(kind="no release metadata", level="medium", detail=detail)
    yield from _version_findings(candidate.version)
    status = [one for one in candidate.header_list("Classifier") if one.startswith("Development Status ::")]
    if any("Inactive" in one for one in status):
        yield Risk(kind="inactive", level="medium", detail="its own classifier says: Inactive")
    if has_native_code(candidate):
        detail = "ships compiled code, which a review of the source does not cover"
        yield Risk(kind="native code", level="low", detail=detail)
    yield from _python_findings(candidate.header("Requires-Python"))


def _version_findings(raw: str | None) -> Iterator[Risk]:
    if raw is None:
        return  # counted as missing release metadata
    try:
        version = Version(raw)
    except InvalidVersion:
        yield Risk(kind="odd version", level="medium", detail=f"{raw!r} is not a PEP 440 version")
        return
    if version.is_prerelease:
        yield Risk(kind="pre-release", level="low", detail=f"{raw} is a pre-release")
    if version.release[:2] in {(0,), (0, 0)}:
        yield Risk(kind="early version", level="low", detail=f"{raw}: a 0.0 version promises nothing yet")
    if version.local:
        yield Risk(kind="local version", level="low", detail=f"{raw} was built outside the package index")


def _python_findings(raw: str | None) -> Iterator[Risk]:
    if raw is None:
        return
    running = platform.python_version()
    try:
        fits = SpecifierSet(raw).contains(running, prereleases=True)
    except InvalidSpecifier:
        yield Risk(kind="odd requires-python", level="low", detail=f"{raw!r} is not a version specifier")
        return
    if not fits:
        detail = f"wants Python {raw}, but this is {running}"
        yield Risk(kind="requires-python", level="high", detail=detail)


def _requirement_findings(candidate: Installed) -> Iterator[Risk]:
    for raw in candidate.header_list("Requires-Dist"):
        try:
            requirement = Requirement(raw)
            # An empty extra: what only an extra asks for isn't required here.
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            yield Risk(kind="odd requirement", level="low", detail=f"{raw!r} can't be read")
            continue
        if wanted and (finding := _unmet(requirement)):
            yield finding


def _unmet(requirement: Requirement) -> Risk | None:
    try:
        version = importlib.metadata.version(canonicalize_name(requirement.name))
    except (importlib.metadata.PackageNotFoundError, KeyError, TypeError, UnicodeDecodeError):
        version = None
    if version is None:
        detail = f"needs {requirement}, which is not installed"
        return Risk(kind="unmet requirement", level="medium", detail=detail)
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        fits = False
    if fits:
        return None
    detail = f"needs {requirement}, but {version} is installed"
    return Risk(kind="version conflict", level="medium", detail=detail)


def _origin_findings(candidate: Installed) -> Iterator[Risk]:
    raw = candidate.read("direct_url.json")
    if not raw:
        return
    try:
        origin: Any = json.loads(raw)
    except ValueError:
        origin = None
    if not isinstance(origin, dict):
        yield Risk(kind="direct url", level="low", detail="direct_url.json can't be read")
        return
    url = _without_password(str(origin.get("url", "")))
    vcs, archive, folder = (_mapping(origin.get(key)) for key in ("vcs_info", "archive_info", "dir_info"))
    if folder.get("editable"):
        yield Risk(kind="editable install", level="low", detail=f"runs from the working copy {url}")
    elif vcs:
        commit = str(vcs.get("commit_id") or "an unknown commit")
        detail = f"installed from {url} at {commit[:12]}, not from a release"
        yield Risk(kind="direct url", level="medium", detail=detail)
    elif archive.get("hash") or archive.get("hashes"):
        yield Risk(kind="direct url", level="low", detail=f"installed from {url}, its hash is recorded")
    else:
        yield Risk(kind="direct url", level="medium", detail=f"installed from {url}, not from a release")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _without_password(url: str) -> str:
    # PEP 610 asks installers to strip credentials; a report is the wrong place to find out who didn't.
    try:
        host = urlsplit(url).netloc
    except ValueError:
        return re.sub(r"//[^/@]*@", "//", url)
    return url.replace(host, host.rpartition("@")[2], 1) if "@" in host else url
