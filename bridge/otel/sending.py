"""Sending spans in batches, and counting those that are lost on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from squadron.runtime.logs import get_logger

#: Spans that are sent together, if the environment says nothing: the SDK's own default.
BATCH = 512
#: A log line about lost spans comes at most so often, in seconds.
TELL_EVERY_S = 30.0

_log = get_logger("squadron.traces")


class Batches(SpanProcessor):
    """A `BatchSpanProcessor` that counts: spans that find no room, and those that their exporter could not send.

    Args:
        most: spans that may wait; the oldest are sent, newer ones are lost.

    Attributes:
        lost: how many spans were.
    """

    def __init__(self, exporter: SpanExporter, most: int) -> None:
        self._counted = _Counted(exporter, self._sent)
        # Ours is full first.
        self._batches = BatchSpanProcessor(self._counted, max_queue_size=most, max_export_batch_size=_batch(most))
        self._most, self._waiting, self.lost = most, 0, 0
        self._told, self._told_at = 0, 0.0
        #: Spans end in threads, too.
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is to be done."""

    def on_end(self, span: ReadableSpan) -> None:
        """Send it with the next batch, if there is room."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            is_full = self._waiting >= self._most
            self.lost += is_full
            self._waiting += not is_full
        if is_full:
            self._tell_sometimes()
        else:
            self._batches.on_end(span)

    def _sent(self, count: int, ok: bool) -> None:
        with self._lock:
            self._waiting -= count
            self.lost += 0 if ok else count
        if not ok:
            self._tell_sometimes()

    def _tell_sometimes(self) -> None:
        if time.monotonic() >= self._told_at + TELL_EVERY_S:
            self.tell_lost()

    def tell_lost(self) -> None:
        """Log how many were lost, if there are more than were told of."""
        with self._lock:
            lost, self._told_at = self.lost, time.monotonic()
            is_news, self._told = lost > self._told, lost
        if is_news:
            _log.warning("traces.lost", spans=lost, hint="is the collector up? else raise OTEL_BSP_MAX_QUEUE_SIZE")

    def shutdown(self) -> None:
        """Send what waits, and stop."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]
        with self._lock:
            # Given up.
            self.lost += self._waiting
            self._waiting = 0

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._batches.force_flush(timeout_millis)


class _Counted(SpanExporter):
    """An exporter that says of each batch whether it was sent."""

    def __init__(self, exporter: SpanExporter, sent: Callable[[int, bool], None]) -> None:
        self._exporter, self._tell = exporter, sent

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._tell(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Stop; what is being tried again is given up."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)


def _batch(most: int) -> int:
    """Spans of one batch, of which no more than wait; the SDK refuses more."""
    text = os.environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "").strip()
    return min(most, int(text) if text.isdecimal() and int(text) else BATCH)
