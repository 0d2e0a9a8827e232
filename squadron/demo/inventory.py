"""What is installed in this Python environment, read from the metadata on disk."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import Parser
from functools import cached_property
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict

from squadron.runtime.errors import Terminal

#: Endings of compiled code, on Linux, Windows and macOS.
NATIVE_ENDINGS = (".so", ".pyd", ".dylib", ".dll")
#: A versioned shared library, such as `libzmq.so.5.2`.
_VERSIONED_SO = re.compile(r"\.so(\.\d+)+$")
#: How many files we stat when RECORD gives no size; bounds one distribution to some milliseconds.
MAX_STATS = 2_000
#: What old tools write when they have nothing to say.
_PLACEHOLDERS = {"", "unknown", "none", "n/a"}


class Distribution(BaseModel):
    """One installed distribution; None means that the metadata doesn't say.

    `release_metadata` is True when METADATA states name, version and a summary or description.
    `size_bytes` adds up the recorded files; `has_native_code` means a shared library in RECORD or a wheel
    built for one platform.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None = None
    summary: str | None = None
    requires_python: str | None = None
    home_page: str | None = None
    release_metadata: bool = False
    size_bytes: int | None = None
    has_native_code: bool | None = None


class Installation(BaseModel):
    """Every distribution one interpreter can import, sorted by normalised name."""

    model_config = ConfigDict(frozen=True)

    python: str
    platform: str
    distributions: list[Distribution]


@dataclass(frozen=True)
class RecordedFile:
    """A line of RECORD: the path relative to site-packages, and the size when it is written down."""

    path: PurePosixPath
    size_bytes: int | None


@dataclass(frozen=True)
class Installed:
    """A distribution on disk with its metadata read tolerantly: broken files give empty fields."""

    source: importlib.metadata.Distribution = field(repr=False)

    @cached_property
    def folder(self) -> Path:
        """The `.dist-info` or `.egg-info` folder; an empty path when the finder doesn't say."""
        return Path(str(getattr(self.source, "_path", "")))

    @cached_property
    def headers(self) -> Message:
        """The headers of METADATA (or PKG-INFO); the payload is the README."""
        text = self.read("METADATA") or self.read("PKG-INFO") or self.read("") or ""
        return Parser().parsestr(text)

    @cached_property
    def name(self) -> str:
        """The name as its author writes it, else what the folder name says, else an empty string."""
        return self.header("Name") or self._from_folder[0]

    @cached_property
    def version(self) -> str | None:
        """The version of METADATA, else of the folder name."""
        return self.header("Version") or self._from_folder[1] or None

    @cached_property
    def description(self) -> str:
        """The README, from the body of METADATA or the old Description header."""
        body = self.headers.get_payload()
        text = body if isinstance(body, str) and body.strip() else str(self.headers.get("Description") or "")
        return "" if text.strip().lower() in _PLACEHOLDERS else text

    @cached_property
    def files(self) -> list[RecordedFile] | None:
        """What RECORD (or egg-info's installed-files.txt) lists; None when neither exists."""
        if record := self.read("RECORD"):
            return list(_parse_record(record))
        if listing := self.read("installed-files.txt"):
            prefix = PurePosixPath(self.folder.name)
            return [RecordedFile(prefix / line, None) for line in listing.splitlines() if line.strip()]
        return None

    @property
    def _from_folder(self) -> tuple[str, str]:
        stem = re.sub(r"\.(dist|egg)-info$", "", self.folder.name)
        name, _, rest = stem.partition("-")
        return name, rest.partition("-")[0]

    def header(self, name: str) -> str | None:
        """One header without folding; None when it is absent or a placeholder such as UNKNOWN."""
        value = self.headers.get(name)
        text = _unfold(str(value)) if value is not None else ""
        return None if text.lower() in _PLACEHOLDERS else text

    def header_list(self, name: str) -> list[str]:
        """Every occurrence of a header that may repeat."""
        return [_unfold(str(value)) for value in self.headers.get_all(name) or []]

    def read(self, filename: str) -> str | None:
        """A file of the metadata folder; bytes that aren't UTF-8 become replacement characters."""
        try:
            return self.source.read_text(filename)
        except UnicodeDecodeError:
            try:
                return (self.folder / filename).read_bytes().decode("utf-8", "replace")
            except OSError:
                return None
        except (OSError, ValueError):
            return None

    def locate(self, path: PurePosixPath) -> Path:
        """The absolute path of a recorded file."""
        return Path(str(self.source.locate_file(str(path))))


def _unfold(text: str) -> str:
    # Metadata 1.x and 2.x continue a header line with 8 spaces, or with 7 spaces and a pipe.
    return re.sub(r"\n(?: {7}\|| {8}|[ \t]+)", "\n", text).strip()


def _parse_record(text: str) -> Iterator[RecordedFile]:
    try:
        for row in csv.reader(text.splitlines()):
            if row and row[0]:
                size = row[2] if len(row) > 2 else ""
                yield RecordedFile(PurePosixPath(row[0]), int(size) if size.isascii() and size.isdigit() else None)
    except csv.Error:
        return  # a broken tail: what was read so far is still true


def installed() -> Iterator[Installed]:
    """Every distribution once, in the order of sys.path; the first of a name wins, as in `import`."""
    seen: set[str] = set()
    # Ray's workers have packages of Ray's own on their path, which are no part of the environment.
    path = [entry for entry in sys.path if "thirdparty_files" not in entry]
    for source in importlib.metadata.distributions(path=path):
        candidate = Installed(source)
        # pip renames a folder to `~name` before it removes it; what is left of that isn't installed.
        if candidate.folder.name.startswith("~") or not candidate.name:
            continue
        key = canonicalize_name(candidate.name)
        if key not in seen:
            seen.add(key)
            yield candidate


def find(distribution: str) -> Installed:
    """The installed distribution of that name, in any spelling.

    Raises:
        Terminal: nothing of that name is installed here.
    """
    wanted = canonicalize_name(distribution)
    try:
        candidates = [Installed(source) for source in importlib.metadata.distributions(name=distribution)]
    except ValueError:  # an empty name
        candidates = []
    for candidate in candidates:
        if not candidate.folder.name.startswith("~") and canonicalize_name(candidate.name) == wanted:
            return candidate
    # A folder may be named unlike its METADATA; only a full walk finds that one.
    for candidate in installed():
        if canonicalize_name(candidate.name) == wanted:
            return candidate
    raise Terminal(f"distribution {distribution!r} is not installed in {sys.prefix}")


def describe(candidate: Installed) -> Distribution:
    """The facts of one installed distribution."""
    return Distribution(
        name=candidate.name,
        version=candidate.version,
        summary=_one_line(candidate.header("Summary")),
        requires_python=candidate.header("Requires-Python"),
        home_page=_home_page(candidate),
        release_metadata=not missing_metadata(candidate),
        size_bytes=_size_bytes(candidate),
        has_native_code=has_native_code(candidate),
    )


def missing_metadata(candidate: Installed) -> list[str]:
    """Which of the facts that every release states are absent: name, version, summary or description."""
    missing = [label for label in ("Name", "Version") if not candidate.header(label)]
    if not (candidate.header("Summary") or candidate.description.strip()):
        missing.append("summary or description")
    return [label.lower() for label in missing]


def has_native_code(candidate: Installed) -> bool | None:
    """Whether compiled code was installed; None when neither RECORD nor the wheel's tags can tell."""
    # A wheel that ships an executable (ruff, py-spy) has no shared library, but a platform in its tag.
    tags = re.findall(r"^Tag:\s*(\S+)", candidate.read("WHEEL") or "", re.MULTILINE)
    if any(not tag.endswith("-any") for tag in tags):
        return True
    if candidate.files is None:
        return False if tags else None
    names = (recorded.path.name.lower() for recorded in candidate.files)
    return any(name.endswith(NATIVE_ENDINGS) or _VERSIONED_SO.search(name) for name in names)


def take_inventory() -> Installation:
    """List everything installed in the running interpreter's environment."""
    found = [describe(candidate) for candidate in installed()]
    return Installation(
        python=platform.python_version(),
        platform=platform.platform(),
        distributions=sorted(found, key=lambda one: canonicalize_name(one.name)),
    )


def _one_line(text: str | None) -> str | None:
    return " ".join(text.split()) if text else None


def _home_page(candidate: Installed) -> str | None:
    if page := candidate.header("Home-page"):
        return page
    urls: dict[str, str] = {}
    for entry in candidate.header_list("Project-URL"):
        label, _, url = entry.partition(",")
        urls[re.sub(r"[\s_-]", "", label).lower()] = url.strip()
    # PEP 753 normalises labels; these are its well-known ones, best first.
    for label in ("homepage", "home", "source", "sourcecode", "repository", "github", "documentation"):
        if urls.get(label):
            return urls[label]
    return next((url for url in urls.values() if url), None)


def _size_bytes(candidate: Installed) -> int | None:
    if candidate.files is None:
        return None
    total, stats = 0, 0
    for recorded in candidate.files:
        if recorded.size_bytes is not None:
            total += recorded.size_bytes
        elif stats < MAX_STATS:
            stats += 1
            try:
                total += candidate.locate(recorded.path).stat().st_size
            except OSError:
                continue  # listed but absent
    return total
