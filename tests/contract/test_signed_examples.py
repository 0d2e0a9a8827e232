"""Others sign and verify, too: the examples of the docs in JavaScript and for the shell, run as they stand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.signature_check import SignatureCheck
from squadron.runtime.trust.signer import Signer
from tests.contract.node_packages import NATS, WITHIN_S, node_packages
from tests.contract.test_signed import Echo, Land, land
from tests.docs import ROOT
from tests.trusted import Realm

__all__ = ["land"]
EXAMPLES = ROOT / "docs" / "examples"
SUBJECT, DATA = "agents.test.task.text.echo", '{"text": "grüße\\n"}'.encode()


def _shell(*arguments: str, payload: bytes) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["sh", str(EXAMPLES / "signed.sh"), *arguments]
    return subprocess.run(command, input=payload, capture_output=True, timeout=WITHIN_S, check=False)


async def test_what_the_shell_signs_is_good(tmp_path: Path) -> None:
    realm = Realm()
    creds = realm.write(tmp_path, "shell", "client")
    signer = Signer.load(creds)
    realm.tokens[signer.user] = signer.token.encode()
    made = _shell("sign", str(creds), SUBJECT, payload=DATA)
    assert made.returncode == 0, made.stderr
    headers = {SENDER_HEADER: made.stdout.decode().strip()}
    check = SignatureCheck(realm.trust, realm.fetch)
    signed = await check.verify(SUBJECT, DATA, headers, at=None)
    assert (signed.by.name, signed.by.role) == ("shell", "client")


def test_the_shell_verifies_what_we_sign(tmp_path: Path) -> None:
    signer = Signer.load(Realm().write(tmp_path, "ann", "client"))
    header = signer.sign(SUBJECT, DATA, None)[SENDER_HEADER]
    good = _shell("verify", header, SUBJECT, payload=DATA)
    assert good.stdout.decode().strip() == signer.user
    for wrong in ((header, SUBJECT + "s", DATA), (header, SUBJECT, DATA + b" ")):
        assert _shell("verify", wrong[0], wrong[1], payload=wrong[2]).returncode != 0


@pytest.mark.parametrize("land", ["jetstream"], indirect=True)
async def test_a_client_in_javascript_asks_with_a_signature_and_believes_the_agent_s(
    land: Land, tmp_path: Path
) -> None:
    replica = await land.serve(Echo())
    settings = replica.peer.place.settings
    program = tmp_path / "signed_ask.mjs"
    shutil.copy(EXAMPLES / program.name, program)
    (tmp_path / "node_modules").symlink_to(node_packages(NATS))
    environ = {
        "SQUADRON_HOME": str(settings.home),
        "SQUADRON_ENV": settings.env,
        "SQUADRON_TRUST": str(settings.trust),
        "NATS_CREDS": str(land.realm.write(tmp_path, "js", "client")),
    }
    node = await asyncio.create_subprocess_exec(
        *("node", str(program), "text.echo", '{"text": "hi"}'),
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            out, err = await node.communicate()
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0, err.decode()
    said = json.loads(out)
    assert (said["by"], said["role"]) == ("echo", "agent")
    assert said["outcome"]["data"] == {"text": "hi", "by": "echo"}, said
    assert not replica.peer.ports.guard.refused
