"""How often the processes of a local Ray look round: mostly nothing happens there."""

from __future__ import annotations

from collections.abc import Mapping

#: Ray's own settings, by its source (2.60), and what they are to be here. Each look costs CPU, be there something
#: to see or not: docs/operations.md has what that comes to.
_CALM = {
    # Serve's controller asks the control store for the nodes and goes through all applications, by default each
    # 0.1 s. From none to one replica takes two to three such rounds.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    # The log monitor looks for new files each 0.1 s; with more than so many files, only after so many seconds.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "1",
    # The dashboard's agent: events to tell, and whether its main thread and the raylet live (0.1, 0.1, 0.4 s).
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "1",
    "RAY_DASHBOARD_AGGREGATOR_AGENT_CHECK_MAIN_THREAD_LIVENESS_INTERVAL_SECONDS": "1",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    # What each process takes, for the dashboard's pages and Ray's metrics, by default after 5 s.
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    # What the dashboard and each of its processes takes, by default after 5 s: the kernel walks all their memory.
    "METRICS_RECORD_INTERVAL_S": "30",
}


def calm(env: Mapping[str, str]) -> dict[str, str]:
    """These settings, for a local Ray to be started with; what `env` says of one counts."""
    return {name: env.get(name, value) for name, value in _CALM.items()}
