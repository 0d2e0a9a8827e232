"""The JavaScript client of A2A judges the server: it sends, streams, and finds its task again."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract.a2a_scribe import Scribe
from tests.contract.conftest import ON_NATS, Peer, Serve
from tests.contract.gateway_process import opened_gateway
from tests.contract.node_packages import A2A, node_packages

SCRIPT = """
import { ClientFactory } from "@a2a-js/sdk/client";
const client = await new ClientFactory().createFromUrl(process.argv[2]);
const message = (id, topic, content) => ({ message: { messageId: id, role: 1, contextId: "", taskId: "",
  parts: [{ content, metadata: undefined, filename: "", mediaType: "" }], metadata: { "squadron/topic": topic },
  extensions: [], referenceTaskIds: [] }, tenant: "", configuration: undefined, metadata: undefined });
const sent = await client.sendMessage(message("js-1", "scribe.shout", { $case: "text", value: "hi" }));
const told = [];
const counting = message("js-2", "scribe.count", { $case: "data", value: { to: 2 } });
for await (const each of client.sendMessageStream(counting)) told.push(each);
console.log(JSON.stringify({ sent, told }));
"""

pytestmark = [ON_NATS, pytest.mark.slow, pytest.mark.timeout(900)]


async def _run(*command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    return out.decode()


async def test_the_javascript_client_sends_and_streams(peer: Peer, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_packages(A2A))
    (tmp_path / "ask.mjs").write_text(SCRIPT)
    await serve(Scribe())
    async with opened_gateway(peer.place, "a2a") as url:
        said: dict[str, Any] = json.loads(await _run("node", "ask.mjs", f"{url}/a2a/scribe/", cwd=tmp_path))
    assert "HI" in json.dumps(said["sent"])
    told = json.dumps(said["told"])
    assert all(f'"{each}"' in told for each in ("0", "1", "done"))
