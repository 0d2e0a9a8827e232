"""What is known of a system at one time: plain values, gathered by `gathering`, judged by the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from squadron.runtime.wire.deployment import Scale


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something can't be had: in words, and what to do."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class BusFacts:
    """The server that we are connected to. `fault` is there if we are not, and then nothing else is known."""

    address: str = ""
    version: str = ""
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class WireFacts:
    """How the server is reached: by TLS or not, over loopback or not.

    Attributes:
        ends_at: until when the server's certificate is good, in seconds since the epoch; 0 without TLS.
        own_ends_at: likewise of this process; 0 if it has none.
    """

    tls: bool
    local: bool
    ends_at: float = 0.0
    own_ends_at: float = 0.0


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What JetStream holds, in bytes; a limit of 0 is none, or one that the server does not tell.

    Attributes:
        fault: why nothing can be stored, if it can't.
    """

    used_bytes: int = 0
    most_bytes: int = 0
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One stream; a limit of 0 is none. `lacks_batches` is that of chunks, where it takes no fast batches."""

    name: str
    bytes: int
    messages: int
    most_bytes: int = 0
    most_messages: int = 0
    has_leader: bool = True
    lacks_batches: bool = False


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """Who takes from a stream: what `waits`, what is `taken` and not settled, what was given out again."""

    stream: str
    name: str
    waits: int
    taken: int
    most_taken: int
    redelivered: int
    #: Topics and patterns of a mailbox.
    filters: tuple[str, ...] = ()

    @classmethod
    def of(cls, stream: str, info: Mapping[str, Any]) -> ConsumerFacts:
        """What the server tells of one."""
        config = info["config"]
        subjects = config.get("filter_subjects") or [config.get("filter_subject", "")]
        return cls(
            stream,
            info["name"],
            info["num_pending"],
            info["num_ack_pending"],
            config.get("max_ack_pending", 0),
            info["num_redelivered"],
            tuple(".".join(each.split(".")[3:5]) for each in subjects if each.split(".")[2:3] == ["task"]),
        )


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """A replica's last sign of life: by its own clock (`at`), and by that of the server (`stored_at`).

    Times are in seconds since the epoch. Of a replica of an older release `at` is 0 and `release` is empty.
    """

    agent: str
    id: str
    at: float
    stored_at: float
    expires_at: float
    node: str = ""
    release: str = ""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """An agent as it is recorded, and as Ray Serve has it; of the latter nothing is known without the bridge.

    Attributes:
        waiting: tasks that nobody has taken, at the last look.
        grown: how many more these are than at the first look.
        lapsed: how many of its replicas fell silent without a farewell in the last minutes.
    """

    name: str
    patterns: tuple[str, ...]
    scale: Scale
    slots: int
    waiting: int = 0
    grown: int = 0
    replicas: int = 0
    status: str = ""
    message: str = ""
    lapsed: int = 0


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """The audit trail: its mode, whether an archivist is at work, what waits for one, and what is recorded."""

    mode: str = "off"
    has_archivist: bool = False
    waiting: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """A model provider's account: nobody asks before `paused_until`; the next call may be made at `next_at`."""

    name: str
    paused_until: float
    next_at: float


@dataclass(frozen=True, slots=True)
class DeadFacts:
    """Dead letters by agent, and when the last one was buried, in seconds since the epoch."""

    by_agent: Mapping[str, int]
    last_at: float = 0.0


@dataclass(frozen=True, slots=True)
class WaitingFacts:
    """What waits: its name, and since when, in seconds since the epoch."""

    id: str
    title: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known; what is None is not, and `unknown` says why, by the name of the field.

    Attributes:
        now: our clock, in seconds since the epoch.
        account: of NATS, in which we reach the streams without a way around; empty if it is not told, or if they
            are in another.
        ahead_s: how much our clock is ahead of the server's, in seconds.
        release: of this process.
        bridge: what it says to `ping`; empty if it does not answer.
        unserved: tasks that wait on topics which no deployed agent serves, by topic.
        cut_off: how many connections the server has cut because they read too slowly; only of the local one.
        free_bytes: on the disk of the local server's store.
    """

    now: float
    heartbeat_s: float
    release: str
    bus: BusFacts
    jetstream: Fault | None = None
    wire: WireFacts | None = None
    account: str | None = None
    ahead_s: float | None = None
    storage: StorageFacts | None = None
    streams: tuple[StreamFacts, ...] | None = None
    consumers: tuple[ConsumerFacts, ...] | None = None
    cut_off: int | None = None
    free_bytes: int | None = None
    bridge: Mapping[str, Any] | None = None
    agents: tuple[AgentFacts, ...] | None = None
    replicas: tuple[ReplicaFacts, ...] | None = None
    unserved: Mapping[str, int] | None = None
    audit: AuditFacts | None = None
    accounts: tuple[AccountFacts, ...] | None = None
    dead: DeadFacts | None = None
    stale_runs: tuple[WaitingFacts, ...] | None = None
    questions: tuple[WaitingFacts, ...] | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)
