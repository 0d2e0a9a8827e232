"""A run as a file: its log, message by message, and what its models were asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from squadron.actors.runs.entries import ENTRIES, Entry, Started
from squadron.runtime.errors import RecordingError
from squadron.runtime.texts import encoded

#: The version of the format: one that is larger can't be read.
VERSION = 1
#: Characters of the digest by which a part of a request is known within its file.
PART_CHARS = 16
LAPSED = "export it again: its log may have lapsed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One run: what each message of its log holds, oldest first.

    Attributes:
        requests: what models were asked, as far as whoever recorded it could tell: by round and number of the try,
            the parts of the request, each as JSON text.
    """

    run: str
    messages: tuple[tuple[Entry, ...], ...]
    requests: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(entry for message in self.messages for entry in message)

    @property
    def started(self) -> Started:
        """How it began.

        Raises:
            RecordingError: it does not say.
        """
        for entry in self.entries:
            if isinstance(entry, Started):
                return entry
        raise RecordingError(f"{self.run} has no beginning", hint=LAPSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a recording is of. Times are in seconds since the epoch.

    Attributes:
        code: the version of Squadron that wrote it.
        replay: of a run that is a replay itself: `of` which run, `from` which round, in which `mode`.
    """

    run: str
    agent: str = ""
    topic: str = ""
    env: str = ""
    exported_at: float = 0.0
    code: str = ""
    replay: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


_HEADER = TypeAdapter(Header)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run, and after it the runs of the agents that it called, as far as their logs were there."""

    header: Header
    runs: tuple[RecordedRun, ...]

    @property
    def main(self) -> RecordedRun:
        """The run that it is of."""
        return self.runs[0]

    def find(self, run: str) -> RecordedRun:
        """One of its runs.

        Raises:
            RecordingError: there is none of this id, or more than one begins so.
        """
        found = [each for each in self.runs if each.run.startswith(run)]
        if len(found) != 1:
            known = ", ".join(each.run for each in self.runs)
            raise RecordingError(f"{len(found)} runs begin with {run!r}", hint=f"there is {known}")
        return found[0]

    def save(self, path: str | Path) -> None:
        """Write it as JSON lines: a header, a line for each message of a log, and a checksum of all before it."""
        Path(path).write_text(self.to_jsonl(), encoding="utf-8")

    def to_jsonl(self) -> str:
        """The file as text."""
        body = "".join(f"{_written(line)}\n" for line in self._lines())
        return body + _written({"checksum": _checksum(body)}) + "\n"

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield {"recording": "squadron", **asdict(self.header)}
        known = set[str]()
        for run in self.runs:
            for message in run.messages:
                yield {"run": run.run, "entries": dumped(message)}
            for (round, number), parts in run.requests.items():
                names = [_checksum(part)[:PART_CHARS] for part in parts]
                for name, part in zip(names, parts, strict=True):
                    if name not in known:
                        known.add(name)
                        yield {"part": name, "text": part}
                yield {"run": run.run, "round": round, "number": number, "parts": names}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            RecordingError: it can't be read, is no recording, was changed, or is cut; says where and what to do.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            hint = "`squadron runs export` writes one"
            raise RecordingError(f"{path} can't be read: {error}", hint=hint) from None
        return cls.from_jsonl(text)

    @classmethod
    def from_jsonl(cls, text: str) -> Self:
        """Read the text of a file.

        Raises:
            RecordingError: as `load`.
        """
        # No `splitlines`: texts in JSON may hold line separators of Unicode.
        lines = text.rstrip("\n").split("\n")
        if not text.strip():
            raise RecordingError("the file is empty", hint="export it again: `squadron runs export`")
        header = _header_of(_object(lines[0], 1))
        _check(lines)
        reader = _Reader()
        for number, line in enumerate(lines[1:-1], 2):
            reader.take(_object(line, number), number)
        return cls(header=header, runs=tuple(reader.runs()))


class _Reader:
    """Takes in the lines between header and checksum."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}
        self._messages: dict[str, list[tuple[Entry, ...]]] = {}
        self._requests: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {}

    def take(self, line: dict[str, Any], number: int) -> None:
        try:
            if "part" in line:
                self._parts[line["part"]] = line["text"]
            elif "parts" in line:
                at = int(line["round"]), int(line["number"])
                self._requests.setdefault(line["run"], {})[at] = tuple(self._parts[part] for part in line["parts"])
            else:
                self._messages.setdefault(line["run"], []).append(ENTRIES.validate_python(line["entries"]))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecordingError(f"entries.{where}: {first['msg']}", hint=_NEWER, line=number) from None
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"it lacks {error}", hint=_NEWER, line=number) from None

    def runs(self) -> Iterable[RecordedRun]:
        """All runs; the first of the file is what it is of."""
        if not self._messages:
            raise RecordingError("it holds no run", hint="export it again: `squadron runs export`")
        for run, messages in self._messages.items():
            yield RecordedRun(run=run, messages=tuple(messages), requests=self._requests.get(run, {}))


_NEWER = "a newer Squadron may have written it: upgrade, or export it again"


def dumped(entries: tuple[Entry, ...]) -> list[dict[str, Any]]:
    """Entries as JSON, as the log has them."""
    content: list[dict[str, Any]] = ENTRIES.dump_python(entries, mode="json", exclude_defaults=True)
    return [{"kind": entry.kind, **each} for each, entry in zip(content, entries, strict=True)]


def _written(line: dict[str, Any]) -> str:
    return encoded(line).decode()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"no JSON: {error}", hint=_WHOLE, line=number) from None
    if not isinstance(read, dict):
        raise RecordingError("no JSON object", hint=_WHOLE, line=number)
    return read


_WHOLE = "a recording is JSON lines, as `squadron runs export` writes them"


def _header_of(line: dict[str, Any]) -> Header:
    if line.pop("recording", None) != "squadron":
        raise RecordingError("no header of a recording", hint=_WHOLE, line=1)
    if line.get("version") != VERSION:
        why = f"it has version {line.get('version')!r}, this Squadron reads {VERSION}"
        raise RecordingError(why, hint="upgrade, or export it again", line=1)
    try:
        return _HEADER.validate_python(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RecordingError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", hint=_NEWER, line=1) from None


def _check(lines: Sequence[str]) -> None:
    """Hold the checksum against what stands before it."""
    last = _object(lines[-1], len(lines))
    if "checksum" not in last:
        raise RecordingError("cut: there is no checksum", hint="export or copy it again", line=len(lines))
    if last["checksum"] != _checksum("".join(f"{line}\n" for line in lines[:-1])):
        hint = "use the file as it was exported; `squadron replay` has options for changes"
        raise RecordingError("the file was changed since it was exported: its checksum differs", hint=hint)
