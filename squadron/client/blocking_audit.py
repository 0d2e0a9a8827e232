"""The audit trail for plain scripts: the same calls without `await`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import IO, Any

from squadron.bridge.audit.history import AuditTrail, ExportFormat, Verified
from squadron.bridge.audit.records import Record


class SyncAuditTrail:
    """See `AuditTrail`; every call blocks until it is done."""

    def __init__(
        self,
        trail: AuditTrail,
        wait: Callable[[Coroutine[Any, Any, Any]], Any],
        iterate: Callable[[AsyncIterator[Record]], Iterator[Record]],
    ) -> None:
        self._trail, self._wait, self._iterate = trail, wait, iterate

    def query(self, **wanted: Any) -> Iterator[Record]:
        """See `AuditTrail.query`; a plain iterator."""
        return self._iterate(self._trail.query(**wanted))

    def follow(self, **wanted: Any) -> Iterator[Record]:
        """See `AuditTrail.follow`; a plain iterator, which blocks until something is recorded."""
        return self._iterate(self._trail.follow(**wanted))

    def verify(self, *, anchors: Path | None = None, public_key: str = "") -> Verified:
        """See `AuditTrail.verify`."""
        found: Verified = self._wait(self._trail.verify(anchors=anchors, public_key=public_key))
        return found

    def export(self, file: IO[bytes], format: ExportFormat = "jsonl") -> int:
        """See `AuditTrail.export`."""
        return int(self._wait(self._trail.export(file, format)))

    def restore(self, file: IO[bytes]) -> int:
        """See `AuditTrail.restore`."""
        return int(self._wait(self._trail.restore(file)))

    def status(self) -> dict[str, Any]:
        """See `AuditTrail.status`."""
        facts: dict[str, Any] = self._wait(self._trail.status())
        return facts
