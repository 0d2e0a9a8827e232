"""`squadron audit`, as people and programs use it, on a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from squadron import Agent, topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.replay.load import tasks_in
from tests.contract.audit_worlds import archiving, audited, recorded
from tests.contract.conftest import ON_NATS, Serve, World


class Bell(Agent):
    """Rings."""

    @topic("bell.ring")
    async def ring(self, text: str) -> str:
        return text


async def run(wiring: Wiring, *arguments: str, env: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    where = ("--home", str(wiring.settings.home), "--env", env or wiring.settings.env)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from squadron.cli import main; main()", *where, "audit", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@ON_NATS
async def test_the_trail_is_looked_at_verified_and_taken_elsewhere(
    world: World, serve: Serve, tmp_path: Path
) -> None:
    wiring = (await serve(Bell())).peer.place
    assert isinstance(wiring, Wiring)
    code, _, err = await run(wiring, "status")
    assert code == 2
    assert "SQUADRON_AUDIT=trail" in err
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        # What anybody says on a lite topic is on record, too, and need be no envelope.
        await wiring.ports.lite.append(wiring.ports.subjects.lite("chat", "one"), b'{"raw": 1}')
        outcome = await wiring.caller.ask("bell.ring", {"text": "ding"})
        await recorded(trail, 1, kind="result")
    code, out, _ = await run(wiring, "query", "--task", outcome.task_id, "--since", "1h", "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["kind"] for each in entries] == ["task", "result"]
    code, out, _ = await run(wiring, "query", "--kind", "result")
    assert f"task={outcome.task_id} outcome=result" in out
    code, out, _ = await run(wiring, "verify", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["faults"]) == (0, True, [])
    file = tmp_path / "trail.jsonl"
    assert (await run(wiring, "export", "-o", str(file)))[0] == 0
    # It can be put to another environment as load.
    (task,) = tasks_in(file)
    assert (task.topic, task.message.id, task.outcome) == ("bell.ring", outcome.task_id, "result")
    file.write_bytes(file.read_bytes().replace(b"ding", b"dong"))
    code, out, err = await run(wiring, "verify", str(file), "--anchors", str(trail.anchor_file))
    assert code == 1
    assert "changed: it is not what was recorded" in err
    code, _, err = await run(wiring, "query", "--since", "yesterday")
    assert (code, "is no time" in err) == (2, True)
