"""The dashboard for Grafana: what an operator looks at first stands at the top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

#: What everybody's metrics begin with in Ray's own export.
RAY_PREFIX = "ray_"
_OURS = re.compile(r"\b(squadron_|agent_task)")
#: Ray has the count and the sum of a histogram as counters, whose names it ends with `_total`.
_SUMS = re.compile(r"\b(\w+_seconds_(?:sum|count))\b")
#: Grafana's grid is 24 wide; three panels stand beside each other.
WIDTH, HEIGHT = 8, 7


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: PromQL and the legend of each of its lines; `unit` as Grafana names it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]

    @property
    def has_buckets(self) -> bool:
        """Whether it needs a histogram."""
        return any("_bucket" in query for query, _ in self.queries)


def _chart(title: str, unit: str, *queries: str) -> Panel:
    """Each query is `legend <- PromQL`."""
    pairs = tuple((promql, legend) for legend, _, promql in (each.partition(" <- ") for each in queries))
    return Panel(title, unit, pairs)


def _quantile(share: float, metric: str, by: str) -> str:
    return (
        f"histogram_quantile({share}, sum by (le, {by}) "
        f'(rate({metric}_bucket{{agent=~"$agent"}}[$__rate_interval])))'
    )


_CALLS = "squadron_model_call_duration_seconds"
_A = '{agent=~"$agent"}'
PANELS: tuple[Panel, ...] = (
    _chart(
        "Tasks per second, by outcome",
        "ops",
        f"{{{{outcome}}}} <- sum by (outcome) (rate(squadron_tasks_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Share of tasks without a result",
        "percentunit",
        f'{{{{agent}}}} <- sum by (agent) (rate(squadron_tasks_total{{agent=~"$agent", outcome!="result"}}'
        f"[$__rate_interval])) / sum by (agent) (rate(squadron_tasks_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Backlog",
        "short",
        f"{{{{agent}}}} {{{{state}}}} <- sum by (agent, state) (squadron_mailbox_tasks{_A})",
        f"{{{{agent}}}} oldest, s <- max by (agent) (squadron_mailbox_oldest_seconds{_A})",
    ),
    _chart(
        "Wait in the mailbox, p50 and p95",
        "s",
        f"{{{{agent}}}} p50 <- {_quantile(0.5, 'squadron_task_wait_seconds', 'agent')}",
        f"{{{{agent}}}} p95 <- {_quantile(0.95, 'squadron_task_wait_seconds', 'agent')}",
    ),
    _chart(
        "Run time, p50 and p95 by topic",
        "s",
        f"{{{{topic}}}} p50 <- {_quantile(0.5, 'squadron_turn_duration_seconds', 'topic')}",
        f"{{{{topic}}}} p95 <- {_quantile(0.95, 'squadron_turn_duration_seconds', 'topic')}",
    ),
    _chart(
        "Mean run time by topic",
        "s",
        f"{{{{topic}}}} <- sum by (topic) (rate(squadron_turn_duration_seconds_sum{_A}[$__rate_interval])) "
        f"/ sum by (topic) (rate(squadron_turn_duration_seconds_count{_A}[$__rate_interval]))",
    ),
    _chart(
        "Replicas: running and target",
        "short",
        f"{{{{agent}}}} {{{{state}}}} <- sum by (agent, state) (squadron_replicas{_A})",
    ),
    _chart(
        "Slots in use",
        "percentunit",
        f'{{{{agent}}}} <- sum by (agent) (squadron_slots{{agent=~"$agent", state="busy"}}) '
        f"/ sum by (agent) (squadron_slots{_A})",
    ),
    _chart(
        "Retries and dead letters per second",
        "ops",
        f"{{{{agent}}}} retries <- sum by (agent) (rate(squadron_task_retries_total{_A}[$__rate_interval]))",
        f"{{{{agent}}}} dead letters <- sum by (agent) (rate(squadron_buried_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Dead letters that lie there",
        "short",
        f"{{{{agent}}}} <- sum by (agent) (squadron_dead_letters{_A})",
    ),
    _chart(
        "Tokens per second, by model and type",
        "short",
        f"{{{{model}}}} {{{{type}}}} <- sum by (model, type) (rate(squadron_tokens_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Cost per hour, US dollars",
        "currencyUSD",
        f"{{{{agent}}}} {{{{model}}}} <- 3600 * sum by (agent, model) "
        f"(rate(squadron_spent_usd_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Model calls: p50 and p95 time",
        "s",
        f"{{{{agent}}}} {{{{model}}}} p50 <- {_quantile(0.5, _CALLS, 'agent, model')}",
        f"{{{{agent}}}} {{{{model}}}} p95 <- {_quantile(0.95, _CALLS, 'agent, model')}",
    ),
    _chart(
        "Model calls that failed, and wait for provider limits",
        "short",
        '{{model}} failed per s <- sum by (model) (rate(squadron_model_calls_total{agent=~"$agent", '
        'result="failed"}[$__rate_interval]))',
        f"{{{{account}}}} calls that wait <- sum by (account) "
        f"(rate(squadron_provider_wait_seconds_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "People who are asked",
        "short",
        "open questions <- squadron_people_waiting",
        f"{{{{agent}}}} asked per s <- sum by (agent) (rate(squadron_people_asked_total{_A}[$__rate_interval]))",
    ),
    _chart(
        "Streams",
        "bytes",
        "{{stream}} <- max by (stream) (squadron_stream_bytes)",
        "limit of all <- max(squadron_store_limit_bytes)",
    ),
    _chart(
        "Audit trail: messages to take up, and gaps",
        "short",
        "to take up <- max(squadron_audit_lag_messages)",
        "gaps in an hour <- max(increase(squadron_audit_gaps_total[1h]))",
    ),
    _chart("Lite topics", "short", "lite topics <- max(squadron_lite_topics)"),
    _chart(
        "Event loops and connections",
        "s",
        f"{{{{agent}}}} late by <- max by (agent) (squadron_loop_lag_seconds{_A})",
        "bridge late by <- max(squadron_bridge_loop_lag_seconds)",
        f"{{{{agent}}}} reconnects <- sum by (agent) (increase(squadron_nats_reconnects_total{_A}[5m]))",
    ),
)


def dashboard(*, of_ray: bool = False) -> dict[str, Any]:
    """As JSON for Grafana 9 and newer, every panel a `timeseries`.

    Args:
        of_ray: for the Prometheus of Ray, where all names begin with `ray_` and there are no histograms.
    """
    chosen = [each for each in PANELS if not (of_ray and each.has_buckets)]
    panels = [_panel(number, each, of_ray) for number, each in enumerate(chosen)]
    source = {"type": "prometheus", "uid": "${datasource}"}
    agents = f"label_values({RAY_PREFIX if of_ray else ''}squadron_replicas, agent)"
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": "agent",
            "type": "query",
            "label": "Agent",
            "datasource": source,
            "query": {"query": agents, "refId": "agent"},
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "uid": "squadronRay" if of_ray else "squadron",
        "title": "Squadron (through Ray)" if of_ray else "Squadron",
        "tags": ["squadron"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _of_ray(promql: str) -> str:
    return _OURS.sub(rf"{RAY_PREFIX}\1", _SUMS.sub(r"\1_total", promql))


def _panel(number: int, panel: Panel, of_ray: bool) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    row, column = divmod(number, 3)
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": source,
            "expr": _of_ray(promql) if of_ray else promql,
            "legendFormat": legend,
        }
        for index, (promql, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }
