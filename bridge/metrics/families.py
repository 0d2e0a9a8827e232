"""Which figures there are: what replicas count, and the metrics that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from squadron.bridge.otel import names

#: What is counted, and for which: a kind of `COUNTED` and the values of its labels.
Cell: TypeAlias = tuple[str, ...]
#: How much: one number, or of a histogram its sum and then how many fell into each bucket, the last one unbounded.
Numbers: TypeAlias = tuple[float, ...]
Cells: TypeAlias = Mapping[Cell, Numbers]

#: Version of what a heartbeat carries: another one is passed over.
VERSION = 1
#: Stands for all values of a label beyond those that there is room for.
OTHER = "other"
#: Topics and models that one replica tells apart: few agents have more than a handful, and a histogram of a topic
#: is 17 series.
MOST_TOPICS, MOST_MODELS = 50, 20
#: Longest value of a label, in characters: a topic has up to 64 on each side of its dot.
LONGEST_LABEL = 129

#: Upper bounds in seconds: handlers take from milliseconds to the length of a run.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
#: Those of `gen_ai.client.operation.duration` (OpenTelemetry semantic conventions for generative AI, v0.1.0).
MODEL_SECONDS = tuple(round(0.01 * 2**n, 2) for n in range(14))

#: What replicas count: how many labels it has, and the buckets of a histogram.
COUNTED: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "tasks": (2, ()),
    "versions": (2, ()),
    "retries": (1, ()),
    "turn": (1, SECONDS),
    "wait": (1, SECONDS),
    "events": (2, ()),
    "buried": (0, ()),
    "distrusted": (1, ()),
    "calls": (2, ()),
    "thought": (1, MODEL_SECONDS),
    "tokens": (2, ()),
    "usd_micros": (1, ()),
    "admitted": (1, ()),
    "admission": (1, ()),
    "asked": (0, ()),
    "answered": (0, ()),
    "reconnects": (0, ()),
}


def _plain(agent: str, labels: Sequence[str]) -> tuple[str, ...]:
    return (agent, *labels)


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric as it is shown.

    Attributes:
        of: what it is made of: a kind of `COUNTED`; empty of what the bridge looks up.
        values: those of the labels, of an agent and a cell's labels.
        scale: what a number is multiplied with.
    """

    name: str
    help: str
    kind: Literal["counter", "histogram", "gauge"]
    labels: tuple[str, ...]
    of: str = ""
    values: Callable[[str, Sequence[str]], tuple[str, ...]] = _plain
    scale: float = 1.0

    @property
    def buckets(self) -> tuple[float, ...]:
        """Upper bounds of a histogram."""
        return COUNTED[self.of][1]


def _counter(name: str, of: str, labels: str, help: str, scale: float = 1.0) -> MetricFamily:
    return MetricFamily(name, help, "counter", ("agent", *labels.split()), of, scale=scale)


def _gauge(name: str, labels: str, help: str) -> MetricFamily:
    return MetricFamily(name, help, "gauge", tuple(labels.split()))


def _provider(_: str, labels: Sequence[str]) -> tuple[str, ...]:
    provider, _, model = labels[0].partition(":")
    return "chat", names.PROVIDERS.get(provider, provider), model or provider


#: What is counted, as it is shown. Names and labels stay as they are: dashboards and alerts hold on to them.
COUNTERS: tuple[MetricFamily, ...] = (
    _counter("squadron_tasks_total", "tasks", "topic outcome", "Tasks that ended, by how."),
    _counter(
        "squadron_version_tasks_total",
        "versions",
        "version outcome",
        "Tasks that ended while an agent had a canary, by the version that worked on them and by how.",
    ),
    _counter("squadron_task_retries_total", "retries", "topic", "Attempts that failed, and are followed by one."),
    MetricFamily(
        "squadron_turn_duration_seconds",
        "How long the handler ran, each attempt by itself.",
        "histogram",
        ("agent", "topic"),
        "turn",
    ),
    MetricFamily(
        "squadron_task_wait_seconds",
        "From the sending of a task to its first attempt, by the clocks of two hosts.",
        "histogram",
        ("agent", "topic"),
        "wait",
    ),
    _counter("squadron_events_total", "events", "topic outcome", "Attempts at durable events, by how they ended."),
    _counter("squadron_buried_total", "buried", "", "Messages that became dead letters."),
    _counter("squadron_distrusted_total", "distrusted", "kind", "Messages that nobody signed who may."),
    _counter("squadron_model_calls_total", "calls", "model result", "Calls of a model: ok or failed."),
    _counter("squadron_tokens_total", "tokens", "model type", "Tokens of models; the types add up to all."),
    _counter("squadron_spent_usd_total", "usd_micros", "model", "What calls of models cost, in US dollars.", 1e-6),
    _counter("squadron_provider_calls_total", "admitted", "account", "Calls that a provider account allowed."),
    _counter(
        "squadron_provider_wait_seconds_total", "admission", "account", "How long calls waited for that, in all."
    ),
    _counter("squadron_people_asked_total", "asked", "", "Questions put to people."),
    _counter("squadron_people_answered_total", "answered", "", "Answers of people that counted."),
    _counter("squadron_nats_reconnects_total", "reconnects", "", "Connections of replicas that came back."),
    MetricFamily(
        "gen_ai_client_operation_duration_seconds",
        "How long a model took to answer (OpenTelemetry, gen_ai.client.operation.duration).",
        "histogram",
        ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
        "thought",
        _provider,
    ),
    MetricFamily(
        "squadron_model_call_duration_seconds",
        "How long models took to answer, by the agent that asked them.",
        "histogram",
        ("agent", "model"),
        "thought",
    ),
    MetricFamily(
        "agent_tasks_total",
        "Tasks that ended, by agent and outcome.",
        "counter",
        ("agent_id", "status"),
        "tasks",
        lambda agent, labels: (agent, labels[1]),
    ),
    MetricFamily(
        "agent_task_duration_seconds",
        "How long handlers ran, by agent.",
        "histogram",
        ("agent_id",),
        "turn",
        lambda agent, _: (agent,),
    ),
)

#: What the bridge looks up.
GAUGES: Mapping[str, MetricFamily] = {
    each.name: each
    for each in (
        _gauge("squadron_mailbox_tasks", "agent state", "Tasks in a mailbox: waiting for a slot, or taken."),
        _gauge("squadron_mailbox_oldest_seconds", "agent", "Age of the oldest task that has not ended."),
        _gauge("squadron_slots", "agent state", "Tasks that replicas could run at once: busy or free."),
        _gauge("squadron_replicas", "agent state", "Replicas: running, the target, and present on the bus."),
        _gauge(
            "squadron_loop_lag_seconds",
            "agent",
            "How late the slowest replica's event loop was, at worst, in a heartbeat.",
        ),
        _gauge("squadron_dead_letters", "agent", "Dead letters that lie there."),
        _gauge("squadron_lite_topics", "", "Lite topics that live."),
        _gauge("squadron_people_waiting", "", "Questions to people that are open."),
        _gauge("squadron_stream_bytes", "stream", "What a stream of the environment holds."),
        _gauge("squadron_stream_messages", "stream", "The same in messages."),
        _gauge("squadron_stream_limit_bytes", "stream", "What it may hold, if it has a limit."),
        _gauge("squadron_store_bytes", "", "What all streams of the NATS account hold."),
        _gauge("squadron_store_limit_bytes", "", "What they may hold, if there is a limit."),
        _gauge("squadron_bridge_nats_reconnects", "", "How often the bridge's connection to NATS came back."),
        _gauge("squadron_bridge_loop_lag_seconds", "", "How late the event loop of the bridge was."),
        _gauge("squadron_audit_lag_messages", "", "Messages that the audit trail has yet to take up."),
        MetricFamily("squadron_audit_gaps_total", "Gaps that the audit trail has recorded.", "counter", ()),
        _gauge("squadron_sampled_timestamp_seconds", "", "When these gauges were looked up."),
        _gauge("squadron_build_info", "version", "1, with the version of the bridge."),
    )
}
