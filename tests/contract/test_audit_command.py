"""`squadron audit`, as people and programs use it, on a real server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import structlog

from squadron import Agent, Squad, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.audit import archivist
from squadron.bridge.jetstream.audit_streams import audit_stream, intake_stream, make_trail
from squadron.bridge.jetstream.intake import Intake
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.replay.load import tasks_in
from squadron.runtime.errors import ConfigError, InvalidMessageError
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.audit_worlds import archiving, audited, entries, recorded, trail_of
from tests.contract.command import run, start
from tests.contract.conftest import ON_NATS, Serve, World


class Bell(Agent):
    """Rings."""

    @topic("bell.ring")
    async def ring(self, text: str) -> str:
        return text


@ON_NATS
async def test_the_trail_is_looked_at_verified_and_taken_elsewhere(
    world: World, serve: Serve, tmp_path: Path
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    code, _, err = await run(wiring, "audit", "status")
    assert code == 2
    assert "SQUADRON_AUDIT=trail" in err
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        # What anybody says on a lite topic is on record, too, and need be no envelope.
        await wiring.ports.lite.append(wiring.ports.subjects.lite("chat", "one"), b'{"raw": 1}')
        outcome = await wiring.caller.ask("bell.ring", {"text": "ding"})
        await recorded(trail, 1, kind="result")
    code, out, _ = await run(wiring, "audit", "query", "--task", outcome.task_id, "--since", "1h", "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["kind"] for each in entries] == ["task", "result"]
    code, out, _ = await run(wiring, "audit", "query", "--kind", "result")
    assert f"task={outcome.task_id} outcome=result" in out
    code, out, _ = await run(wiring, "audit", "verify", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["faults"]) == (0, True, [])
    file = tmp_path / "trail.jsonl"
    assert (await run(wiring, "audit", "export", "-o", str(file)))[0] == 0
    # It can be put to another environment as load.
    (task,) = tasks_in(file)
    assert (task.topic, task.message.id, task.outcome) == ("bell.ring", outcome.task_id, "result")
    file.write_bytes(file.read_bytes().replace(b"ding", b"dong"))
    code, out, err = await run(wiring, "audit", "verify", str(file), "--anchors", str(trail.anchor_file))
    assert code == 1
    assert "changed: it is not what was recorded" in err
    code, _, err = await run(wiring, "audit", "query", "--since", "yesterday")
    assert (code, "is no time" in err) == (2, True)


@ON_NATS
async def test_an_export_as_parquet_is_read_back(world: World, serve: Serve, tmp_path: Path) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        outcome = await wiring.caller.ask("bell.ring", {"text": "ding"})
        await recorded(trail, 1, kind="result")
    file = tmp_path / "trail.parquet"
    code, _, err = await run(wiring, "audit", "export", "--format", "parquet", "-o", str(file))
    assert code == 0, err
    table = pq.read_table(file)
    wanted = await entries(trail)
    rows = table.to_pylist()
    assert [each["n"] for each in rows] == [each["n"] for each in wanted]
    for row, entry in zip(rows, wanted, strict=True):
        at = row.pop("at")
        assert at.timestamp() == pytest.approx(entry.pop("at"), abs=2e-6)
        row = {name: value for name, value in row.items() if value is not None}
        assert row | {name: json.loads(row[name]) for name in ("message", "action") if name in row} == entry
    assert table.filter(pc.field("task") == outcome.task_id).num_rows == 1
    code, _, err = await run(wiring, "audit", "export", "--format", "csv")
    assert (code, "use jsonl or parquet" in err) == (2, True)


@ON_NATS
async def test_without_pyarrow_an_export_as_parquet_says_what_to_install(
    world: World, serve: Serve, tmp_path: Path
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    await audited(wiring, "trail")
    # As where it is not installed: importing it raises.
    export = ("export", "--format", "parquet", "-o", str(tmp_path / "trail.parquet"))
    code, _, err = await run(wiring, "audit", *export, before="sys.modules['pyarrow'] = None")
    assert (code, "squadron-ray[parquet]" in err) == (2, True), err
    assert os.listdir(tmp_path) == []


@ON_NATS
async def test_the_archive_command_records_the_tail_shows_it_and_an_import_elsewhere_verifies(
    world: World, serve: Serve, tmp_path: Path
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    archive, tail = (
        await start(wiring, "audit", "archive"),
        await start(wiring, "audit", "tail", "--kind", "task", "--json"),
    )
    try:
        assert tail.stdout is not None
        shown = asyncio.create_task(tail.stdout.readline())
        while not shown.done():
            # The tail begins with what comes after it; nobody says when it does.
            await wiring.caller.ask("bell.ring", {"text": "ding"})
            await asyncio.wait([shown], timeout=0.2)
        assert json.loads(shown.result())["kind"] == "task"
        # It stops as by Ctrl-C, with an anchor of all that is recorded.
        archive.send_signal(signal.SIGINT)
        await archive.wait()
    finally:
        for process in (archive, tail):
            if process.returncode is None:
                process.kill()
                await process.wait()
    here = await trail.verify()
    assert here.ok
    assert here.anchors > 0
    file = tmp_path / "trail.jsonl"
    assert (await run(wiring, "audit", "export", "-o", str(file)))[0] == 0
    elsewhere = replace(wiring.settings, env=f"{wiring.settings.env}-copy")
    copy = await Wiring.open(elsewhere, AgentIdentity(id="copy", type="test"), create=True)
    # Somebody has to be there, for the command line to join it.
    copy.registry.heartbeat_s = 200.0
    await copy.registry.advertise(AgentSpec.of(Bell).card())
    await copy.registry.renew("bell", "replica")
    code, out, err = await run(wiring, "audit", "import", str(file), env=elsewhere.env)
    assert (code, f"Brought {here.last} entries in" in out + err) == (0, True), err
    anchors = ("--anchors", str(trail.anchor_file))
    code, out, _ = await run(wiring, "audit", "verify", "--json", *anchors, env=elsewhere.env)
    assert (code, json.loads(out)["last"], json.loads(out)["anchors"]) == (0, here.last, here.anchors)
    await copy.aclose()
    # Where there is a trail nothing is brought in.
    code, _, err = await run(wiring, "audit", "import", str(file))
    assert (code, "has a trail already" in err) == (2, True)


def _wrong_files(export: bytes) -> list[bytes]:
    """What is no export, or no more the one it was."""
    lines = export.split(b"\n")
    heads = [at for at, line in enumerate(lines) if line.startswith(b'{"head"')]
    return [
        b"",
        b"\n".join(lines[: heads[-1]]),  # cut in a batch
        b"\n".join(lines[: heads[0] + 1] + lines[heads[1] + 1 :]),  # without a batch
        export.replace(b'"kind":"task"', b'"kind":"tusk"', 1),
        b'{"run": "run-1"}\n{"head": "x"}\n',
        b"PAR1\x00\xff",
    ]


@ON_NATS
async def test_a_wrong_file_uses_nothing_up(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail, export = await audited(wiring, "trail"), io.BytesIO()
    async with archiving(wiring.settings):
        for count in range(1, 4):
            await wiring.caller.ask("bell.ring", {"text": "ding"})
            await recorded(trail, count, kind="result")
    await trail.export(export)
    elsewhere = replace(wiring.settings, env=f"{wiring.settings.env}-copy")
    copy = await Wiring.open(elsewhere, AgentIdentity(id="copy", type="test"), create=True)
    there = trail_of(copy)

    for data in _wrong_files(export.getvalue()):
        with pytest.raises(InvalidMessageError):
            await there.restore(io.BytesIO(data))
    export.seek(0)

    assert await there.restore(export) == (await trail.verify()).last
    assert (await there.verify()).faults == ()
    await copy.aclose()


@ON_NATS
async def test_a_trail_that_was_brought_in_has_its_archivist_wait_in_silence(
    world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    names, looks = StreamNames(wiring.settings.env), list[bool]()
    await make_trail(wiring.connection, names)
    monkeypatch.setattr(archivist, "LOOK_S", 0.01)

    class Looked(Intake):
        async def wanted(self) -> bool:
            looks.append(await super().wanted())
            return looks[-1]

    with structlog.testing.capture_logs() as said:
        async with archiving(wiring.settings, intake=Looked):
            while len(looks) < 3:
                await asyncio.sleep(0.01)
            assert said == []
            # Audited from here on, it goes on with it.
            trail = await audited(wiring, "trail")
            await wiring.caller.ask("bell.ring", {"text": "ding"})
            await recorded(trail, 1, kind="result")


@ON_NATS
async def test_who_follows_a_trail_follows_the_one_after_a_lost_store(
    world: World, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    monkeypatch.setattr(archivist, "LOOK_S", 0.05)
    trail, names, told = await audited(wiring, "trail"), StreamNames(wiring.settings.env), list[str]()

    async def follow() -> None:
        async for record in trail.follow(kind="result"):
            told.append(record["task"])

    async def rung(least: int) -> None:
        outcome = await wiring.caller.ask("bell.ring", {"text": "ding"})
        await recorded(trail, least, kind="result")
        async with asyncio.timeout(30.0):
            while following is not None and outcome.task_id not in told:
                await asyncio.sleep(0.02)

    following: asyncio.Task[None] | None = None
    async with archiving(wiring.settings):
        for count in range(1, 5):
            await rung(count)
        following = asyncio.create_task(follow())
        while not told:
            # It begins with what comes after it; nobody says when it does.
            await wiring.caller.ask("bell.ring", {"text": "ding"})
            await asyncio.sleep(0.05)
        await rung(5)
        for stream in (audit_stream(names), intake_stream(names)):
            await wiring.connection.api(f"STREAM.DELETE.{stream}", {})
        await audited(wiring, "trail")
        # The new trail is shorter than the old one was.
        await rung(1)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@ON_NATS
async def test_a_blocking_squad_has_the_same_shelf(world: World, serve: Serve) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "trail")
    async with archiving(wiring.settings):
        outcome = await wiring.caller.ask("bell.ring", {"text": "ding"})
        await recorded(trail, 1, kind="result")

    def look() -> None:
        with Squad.connect(wiring.settings) as squad:
            found = list(squad.audit.query(task=outcome.task_id))
            assert [each["kind"] for each in found] == ["task", "result"]
            assert squad.audit.status()["mode"] == "trail"
            assert squad.audit.verify().ok
            file = io.BytesIO()
            assert squad.audit.export(file) == squad.audit.status()["entries"]
            with pytest.raises(ConfigError, match="has a trail already"):
                squad.audit.restore(file)

    await asyncio.to_thread(look)
