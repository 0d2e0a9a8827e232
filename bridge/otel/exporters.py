"""Whether this process is traced, and sends its log lines. Imports nothing of OpenTelemetry unless it is so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from squadron.actors.thinking.credentials import given
from squadron.runtime.logs import get_logger
from squadron.runtime.telemetry.observer import Observer
from squadron.runtime.wire.envelope import AgentIdentity

if TYPE_CHECKING:
    from structlog.typing import Processor

#: What says where spans go; see https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_log = get_logger("squadron.traces")


def traces_of(identity: AgentIdentity, environment: str, env: Mapping[str, str] | None = None) -> Observer | None:
    """What traces this process: with the program's own provider if it has set one, else as the environment says.

    None if neither is so, or what it needs is not installed, which is logged once.

    Args:
        env: the variables of OpenTelemetry; what the shell says by default, see `credentials.given`.
    """
    env = given() if env is None else env
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = exporters_in(env)
    if not exporters and "opentelemetry.trace" not in sys.modules:
        return None
    try:
        from squadron.bridge.otel import provider

        if (own := provider.of_program()) is not None:
            return provider.traces_by(own, identity, env)
        return provider.traces_to(exporters, identity, environment, env) if exporters else None
    except ImportError as error:
        if exporters:
            _tell_once(f"traces are off: {error}")
        return None
    except ValueError as error:
        _tell_once(f"traces are off: {error}")
        return None


def lines_of(
    identity: AgentIdentity, environment: str, env: Mapping[str, str] | None = None
) -> tuple[Processor, ...]:
    """What sends this process's log lines, for `configure_logs`; nothing unless `OTEL_LOGS_EXPORTER` says so."""
    env = given() if env is None else env
    exporters = _named("OTEL_LOGS_EXPORTER", env)
    if not exporters or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    try:
        from squadron.bridge.otel.lines import lines_to

        return (lines_to(exporters, identity, environment, env),)
    except (ImportError, ValueError) as error:
        _tell_once(f"log lines are not sent: {error}")
        return ()


def exporters_in(env: Mapping[str, str]) -> tuple[str, ...]:
    """The exporters that the environment names: `otlp` if there is only an address, none without either."""
    is_addressed = any(env.get(name, "").strip() for name in _ENDPOINTS)
    if is_addressed and not env.get("OTEL_TRACES_EXPORTER", "").strip(", "):
        return ("otlp",)
    return _named("OTEL_TRACES_EXPORTER", env)


def _named(variable: str, env: Mapping[str, str]) -> tuple[str, ...]:
    named = [name.strip().lower() for name in env.get(variable, "").split(",")]
    return tuple(dict.fromkeys(name for name in named if name not in ("", "none")))


@cache
def _tell_once(why: str) -> None:
    _log.warning("traces.off", reason=why, hint="pip install 'squadron-ray[otel]', and see docs/traces.md")
