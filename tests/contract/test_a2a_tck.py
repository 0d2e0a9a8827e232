"""A2A's own kit judges the server, over both bindings.

It is branch `1.0-dev` of a2aproject/a2a-tck at 357c4a8. `A2A_TCK` names its folder, in which `.venv` has it
installed (`python -m venv .venv && .venv/bin/pip install -e .`). Without it this is skipped.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.a2a_fixture import Conformant
from tests.contract.conftest import ON_NATS, Peer, Serve
from tests.contract.gateway_process import opened_gateway

FOLDER = Path(os.environ.get("A2A_TCK", "/nonexistent"))
#: What the kit finds fault with: see the table in docs/a2a.md.
KNOWN = frozenset(
    ("test_last_modified_present", "test_response_content_type", "test_content_type_not_supported_error")
)

pytestmark = [
    ON_NATS,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (FOLDER / "run_tck.py").exists(), reason="A2A_TCK names no folder with the kit"),
]


async def test_the_kit_finds_no_fault_but_those_that_are_known(peer: Peer, serve: Serve) -> None:
    await serve(Conformant())
    async with opened_gateway(peer.place, "a2a", push_to=("localhost", "127.0.0.1")) as url:
        process = await asyncio.create_subprocess_exec(
            *(str(FOLDER / ".venv" / "bin" / "python"), "run_tck.py", "--sut-host", f"{url}/a2a/conformant"),
            *("--transport", "jsonrpc,http_json"),
            cwd=FOLDER,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
    failed = set(re.findall(r"^FAILED \S+::(\S+)", said, re.M))
    assert failed <= KNOWN, said[-6000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None, said[-3000:]
    assert int(passed[1]) >= 145
