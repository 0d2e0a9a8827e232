"""Whether this process is traced. Imports nothing of OpenTelemetry unless it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache

import structlog

from squadron.actors.thinking.credentials import given
from squadron.runtime.telemetry.observer import Observer
from squadron.runtime.wire.envelope import AgentIdentity

#: What says where spans go; see https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_log = structlog.get_logger("squadron.traces")


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


def exporters_in(env: Mapping[str, str]) -> tuple[str, ...]:
    """The exporters that the environment names: `otlp` if there is only an address, none without either."""
    named = [name.strip().lower() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named and any(env.get(name, "").strip() for name in _ENDPOINTS):
        named = ["otlp"]
    return tuple(dict.fromkeys(name for name in named if name != "none"))


@cache
def _tell_once(why: str) -> None:
    _log.warning("traces.off", reason=why, hint="pip install 'squadron-ray[otel]', and see docs/traces.md")
