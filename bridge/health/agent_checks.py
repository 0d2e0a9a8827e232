"""What may ail the bridge, the agents and their replicas."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from squadron.bridge.health.diagnosis import Diagnosis
from squadron.bridge.health.facts import AgentFacts, Facts
from squadron.runtime.registry.registry import STAND_IN

#: Heartbeats after which a replica that has not lapsed yet is told: it lapses after three.
SILENT_BEATS = 2.0
#: So many silent deaths within what the registry remembers are no accident.
MANY_LAPSES = 3
#: How many topics are named.
_NAMED = 5
#: What a version is made of (PEP 440).
_RELEASE = re.compile(r"[0-9A-Za-z.!+_-]{1,100}")


def check_bridge(facts: Facts) -> Iterator[Diagnosis]:
    """Does not answer, is not answered by Ray, or has lost what the server had stored."""
    if facts.bridge is None or not facts.bridge:
        found = "it does not answer: agents go on, but nothing is deployed, scaled or healed"
        yield Diagnosis("bridge", "fail", found, "squadron up")
        return
    if "agents" not in facts.bridge:
        found = "it answers, but Ray does not tell it how the agents are"
        yield Diagnosis("bridge", "warn", found, "look at Ray's dashboard; if Ray is gone: squadron up")
    if losses := facts.bridge.get("losses"):
        streams = ", ".join(sorted({name for loss in losses for name in loss["streams"]}))
        found = f"the nats-server lost its store, last at {losses[-1]['at']}: {streams}"
        fix = "agents are back, what was stored is not; see to it that the server keeps its store_dir"
        yield Diagnosis("bridge", "warn", found, fix)


def check_releases(facts: Facts) -> Iterator[Diagnosis]:
    """Squadron itself is not the same everywhere."""
    releases = Counter(each.release for each in facts.replicas or () if each.release)
    if (told := (facts.bridge or {}).get("release")) is not None:
        releases[told] += 1
    if others := sorted(releases.keys() - {facts.release}):
        where = [f"the bridge has {told}"] if told in others else []
        where += [f"{each.id} has {each.release}" for each in facts.replicas or () if each.release in others][
            :_NAMED
        ]
        found = f"here is squadron-ray {facts.release}; {', '.join(where)}"
        # Anybody may have told it, and people paste this line into a shell.
        named = [each for each in (told, *reversed(others)) if each and _RELEASE.fullmatch(each)]
        what = f"squadron-ray=={named[0]}" if named else "squadron-ray"
        fix = f'pip install "{what}" everywhere, then squadron up'
        yield Diagnosis("releases", "warn", found, fix)


def check_topics(facts: Facts) -> Iterator[Diagnosis]:
    """Tasks wait that nobody serves."""
    unserved = sorted((facts.unserved or {}).items(), key=lambda each: -each[1])
    for topic, count in unserved[:_NAMED]:
        found = f"{count:,} tasks wait on {topic}, which no agent serves"
        yield Diagnosis("topics", "fail", found, "squadron deploy MODULE:AGENT that has it; squadron topics")
    if len(unserved) > _NAMED:
        yield Diagnosis(
            "topics", "fail", f"so do those of {len(unserved) - _NAMED} more topics", "squadron topics"
        )


def check_agents(facts: Facts) -> Iterator[Diagnosis]:
    """Can't start, or has no replica although tasks wait."""
    for each in facts.agents or ():
        if each.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reason = (each.message.strip().splitlines() or ["no reason given"])[-1]
            fix = "squadron status has the traceback; deploy it anew, or squadron undeploy it"
            yield Diagnosis("agents", "fail", f"{each.name} is {each.status}: {reason}", fix)
        elif each.waiting and not each.replicas and each.scale.maximum:
            found = f"{each.waiting:,} tasks of {each.name} wait, and it has no replica"
            fix = "squadron status; if it is the first after a rest, one starts within seconds"
            yield Diagnosis("agents", "warn", found, fix)


def check_pinned(facts: Facts) -> Iterator[Diagnosis]:
    """Is held at zero replicas while tasks wait."""
    for each in facts.agents or ():
        if each.waiting and each.scale.maximum == 0:
            found = f"{each.waiting:,} tasks of {each.name} wait, and it is held at 0 replicas"
            yield Diagnosis("pinned at 0", "warn", found, f"squadron scale {each.name}=auto")


def check_backlogs(facts: Facts) -> Iterator[Diagnosis]:
    """Grows although all replicas that it may have are there."""
    for each in facts.agents or ():
        if _is_swamped(each):
            found = (
                f"{each.waiting:,} tasks of {each.name} wait, {each.grown:,} more than a moment ago, and its"
                f" {each.replicas} replicas are the most it may have"
            )
            more = f"{each.scale.minimum}..{2 * each.scale.maximum}"
            yield Diagnosis("backlogs", "warn", found, f"squadron scale {each.name}={more}; or more slots")


def _is_swamped(agent: AgentFacts) -> bool:
    at_most = 0 < agent.scale.maximum <= agent.replicas
    return at_most and agent.grown > 0 and agent.waiting > agent.slots * agent.replicas


def check_restarts(facts: Facts) -> Iterator[Diagnosis]:
    """Dies again and again."""
    for each in facts.agents or ():
        if each.lapsed >= MANY_LAPSES:
            found = f"{each.lapsed} replicas of {each.name} died or went deaf in the last minutes"
            fix = "its log says why: Ray's dashboard, Serve, the replica, stderr; often memory, or sys.exit()"
            yield Diagnosis("restarts", "warn", found, fix)


def check_silent(facts: Facts) -> Iterator[Diagnosis]:
    """Misses its heartbeats: it is blocked, deaf, or dead."""
    # By the server's clock only: those of hosts may differ.
    now = facts.now - (facts.ahead_s or 0.0)
    for each in facts.replicas or ():
        beat_s = (each.expires_at - each.at) / 3 if each.at else facts.heartbeat_s
        silent_s = now - each.stored_at
        if each.id != STAND_IN and silent_s > SILENT_BEATS * max(beat_s, facts.heartbeat_s):
            found = f"{each.id} has been silent for {silent_s:.0f} s: its event loop is blocked, or it is dead"
            yield Diagnosis("silent replicas", "warn", found, "it is replaced by itself; else look into its log")
