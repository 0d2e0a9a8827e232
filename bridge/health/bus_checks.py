"""What may ail the nats-server and its storage."""

from __future__ import annotations

import re
from collections.abc import Iterator

from squadron.bridge.auth.server_conf import STREAMS
from squadron.bridge.health.diagnosis import Diagnosis, Level
from squadron.bridge.health.facts import Facts
from squadron.runtime.ports.queue import SERIAL_AT_ONCE

#: Parts of a limit from which on people are told, and from which on it is nearly too late.
NEAR, FULL = 0.8, 0.95
#: Presence and deadlines compare clocks of hosts: below a second nobody notices, above a heartbeat all do.
CLOCKS_S = 1.0
#: A certificate that is good for less than this is told of, in days.
CERTIFICATE_DAYS = 30
#: Free bytes on the disk of the store: as for Ray's, which warns when a disk is 95 % full.
DISK_GOOD, DISK_LEAST = 5e9, 1e9
#: The oldest nats-server whose streams can do what we need.
LEAST_VERSION = (2, 12)


def check_connection(facts: Facts) -> Iterator[Diagnosis]:
    """Can't be reached, refuses the credentials, or is too old."""
    if fault := facts.bus.fault:
        yield Diagnosis("nats answers", "fail", fault.reason, fault.hint)
    elif tuple(map(int, re.findall(r"\d+", facts.bus.version)[:2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        found = f"nats-server {facts.bus.version} at {facts.bus.address} is older than {least}"
        yield Diagnosis("nats answers", "fail", found, "update the nats-server")


def check_wire(facts: Facts) -> Iterator[Diagnosis]:
    """Can be listened to, or won't be believed soon. What is not believed is told by `nats answers`."""
    wire = facts.wire
    if wire is None:
        return
    if not wire.tls and not wire.local:
        found = f"what goes to {facts.bus.address} and back can be read and changed on the way"
        fix = "TLS: squadron auth tls HOST makes certificates for the server; then NATS_CA, and tls:// in NATS_URL"
        yield Diagnosis("tls", "warn", found, fix)
    fixes = {
        "the server's certificate": "squadron auth tls HOST makes one anew; for the local server squadron up",
        "our certificate": "make one anew: squadron auth tls --client NAME; NATS_CERT, NATS_KEY",
    }
    for (whose, fix), at in zip(fixes.items(), (wire.ends_at, wire.own_ends_at), strict=True):
        left_days = (at - facts.now) / 86400
        if at and left_days < CERTIFICATE_DAYS:
            level: Level = "fail" if left_days < 0 else "warn"
            when = "has ended" if left_days < 0 else f"ends in {left_days:.0f} days"
            yield Diagnosis("tls", level, f"{whose} {when}: nobody connects any more then", fix)


def check_jetstream(facts: Facts) -> Iterator[Diagnosis]:
    """Is not enabled, or has no leader."""
    if fault := facts.jetstream:
        yield Diagnosis("jetstream", "fail", fault.reason, fault.hint)


def check_accounts(facts: Facts) -> Iterator[Diagnosis]:
    """Keeps nobody from doing what is another's to do."""
    if facts.account not in (None, "", STREAMS):
        found = "all who reach this server are in one account: each can read, forge and delete what is another's"
        fix = "fine for one user; for several give each process its role, in two accounts: docs/security.md"
        yield Diagnosis("least privilege", "ok", found, fix)


def check_storage(facts: Facts) -> Iterator[Diagnosis]:
    """Takes nothing more, or soon won't."""
    storage = facts.storage
    if storage is None:
        return
    fix = "give it more storage (`max_file`), or free some: squadron dlq drop; nats stream purge"
    if storage.fault:
        yield Diagnosis(
            "storage", "fail", f"nothing can be stored: {storage.fault.reason}", storage.fault.hint or fix
        )
    elif level := _near(storage.used_bytes, storage.most_bytes):
        yield Diagnosis("storage", level, f"JetStream holds {_of(storage.used_bytes, storage.most_bytes)}", fix)


def check_streams(facts: Facts) -> Iterator[Diagnosis]:
    """Is near its limit, has no leader, is not there, or takes one by one what it could have at once."""
    for stream in facts.streams or ():
        if stream.messages < 0:
            fix = "squadron up makes it anew; what it held is lost"
            yield Diagnosis("streams", "fail", f"{stream.name} is missing", fix)
            continue
        if not stream.has_leader:
            fix = "more than half of its servers must run: nats stream info shows which do"
            yield Diagnosis("streams", "fail", f"{stream.name} has no leader", fix)
        fix = f"nats stream edit {stream.name} --max-bytes=… --max-msgs=…"
        if level := _near(stream.bytes, stream.most_bytes):
            yield Diagnosis("streams", level, f"{stream.name} holds {_of(stream.bytes, stream.most_bytes)}", fix)
        if level := _near(stream.messages, stream.most_messages):
            found = f"{stream.name} holds {stream.messages:,} of {stream.most_messages:,} messages"
            yield Diagnosis("streams", level, found, fix)
        if stream.lacks_batches:
            found = f"{stream.name} takes no fast batches: each chunk of a stream is acknowledged alone"
            yield Diagnosis("streams", "ok", found, "nats-server 2.14 or newer, and then squadron up")


def check_consumers(facts: Facts) -> Iterator[Diagnosis]:
    """Takes slower than it is given, or is cut off for that."""
    if facts.cut_off:
        found = f"the nats-server has cut {facts.cut_off} connections since its start that read too slowly"
        fix = "look for handlers that block the event loop (sync code in `async def`); its log names them"
        yield Diagnosis("slow consumers", "warn", found, fix)
    for each in facts.consumers or ():
        # One reader has as many as there may be, all the time.
        serial = each.most_taken == SERIAL_AT_ONCE
        fix = "handlers that block the event loop can't renew their leases: squadron status; the replica's log"
        if each.redelivered:
            found = f"{each.name}: {each.redelivered:,} messages under way were delivered more than once"
            yield Diagnosis("slow consumers", "warn", found, fix)
        if each.most_taken and each.taken >= each.most_taken and each.waits and not serial:
            found = f"{each.name}: {each.taken:,} messages are taken and not settled; no more are given out"
            yield Diagnosis("slow consumers", "warn", found, fix)


def check_clocks(facts: Facts) -> Iterator[Diagnosis]:
    """Differ from that of the server by more than can be ignored."""
    fix = "set the clock by NTP (timedatectl set-ntp true): presence and deadlines compare clocks"
    if facts.ahead_s is not None and (level := _clock_level(facts, facts.ahead_s)):
        yield Diagnosis("clocks", level, f"this machine is {_ahead(facts.ahead_s)} the nats-server", fix)
    seen = set[str]()
    for each in facts.replicas or ():
        # One without this field is of an older release, or of another language.
        ahead_s = each.at - each.stored_at if each.at else 0.0
        host = each.node or each.id
        if host not in seen and (level := _clock_level(facts, ahead_s)):
            seen.add(host)
            yield Diagnosis("clocks", level, f"{host}, with {each.id}, is {_ahead(ahead_s)} the nats-server", fix)


def check_disk(facts: Facts) -> Iterator[Diagnosis]:
    """Has little room left for the local nats-server's store."""
    free = facts.free_bytes
    if free is not None and free < DISK_GOOD:
        level: Level = "fail" if free < DISK_LEAST else "warn"
        found = f"{free / 1e9:.1f} GB are free for the nats-server's store"
        yield Diagnosis(
            "disk of the store", level, found, "delete something, or move SQUADRON_HOME to a larger disk"
        )


def _near(used: int, most: int) -> Level | None:
    part = used / most if most else 0.0
    return "fail" if part >= FULL else "warn" if part >= NEAR else None


def _of(used: int, most: int) -> str:
    return f"{used / 1e6:,.1f} of {most / 1e6:,.1f} MB"


def _clock_level(facts: Facts, ahead_s: float) -> Level | None:
    if abs(ahead_s) < CLOCKS_S:
        return None
    return "fail" if abs(ahead_s) >= max(CLOCKS_S, facts.heartbeat_s) else "warn"


def _ahead(ahead_s: float) -> str:
    return f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'}"
