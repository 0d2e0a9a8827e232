"""Each way in which a call of a provider goes wrong, with both SDKs as talkative as can be: none tells the key."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys

import pytest

from tests.faulty_provider import FAULTS, faulty_provider

MARK = secrets.token_hex(8)
#: What may go wrong besides what the provider does.
ON_THE_WAY = ("refused", "tls", "address")
#: What is said of some of them, so that it was they.
SAID = {
    "auth": "answered HTTP 401: wrong key",
    "limit": "answered HTTP 429: wrong key",
    "page": "answered HTTP 502: ",
    "event": "answered an error: wrong key",
    "silent": "was silent for 1 s",
    "refused": "failed: ",
    "tls": "failed: ",
    "address": "can't be set up: ",
}

PROGRAM = """
import asyncio, json, logging, os, sys

logging.basicConfig(level=logging.DEBUG)

from squadron import AnthropicModel, ChatMessage, ModelError, ModelRequest, OpenAIModel
from squadron.runtime.logs import configure_logs
from squadron.runtime.retries import failure_details, summary_of, traceback_of
import structlog

configure_logs("DEBUG")
wire, faults = sys.argv[1], sys.argv[2:]
options = {} if wire == "messages" else {"api": wire}


def address(fault):
    url = os.environ["PROVIDER_URL"] + "/" + fault
    if fault in ("refused", "address"):
        return url.rpartition(":")[0] + {"refused": ":9", "address": ":port"}[fault]
    return url.replace("http:", "https:") if fault == "tls" else url


async def call(fault):
    make = AnthropicModel if wire == "messages" else OpenAIModel
    try:
        patience_s = 1.0 if fault == "silent" else 30.0
        limits = {"first_event_s": patience_s, "between_events_s": patience_s}
        model = make("m", base_url=address(fault), **limits, **options)
        await model.think(ModelRequest((ChatMessage("user", "hello"),)))
    except ModelError as error:
        told = [str(error), repr(error), error.to_dict(), summary_of(error), traceback_of(error)]
        print(fault, json.dumps([*told, failure_details(error, 1)]))
        structlog.get_logger("test").exception("failed", error=error)
        logging.getLogger("theirs").exception("it broke: %r", error)
    else:
        raise AssertionError(fault)


async def main():
    await asyncio.gather(*map(call, faults))


asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("wire", "variable"),
    [("chat", "OPENAI_API_KEY"), ("responses", "OPENAI_API_KEY"), ("messages", "ANTHROPIC_API_KEY")],
)
async def test_no_error_and_no_log_of_a_failed_call_tells_a_key_or_a_password(wire: str, variable: str) -> None:
    async with faulty_provider() as port:
        environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        environ |= {
            variable: f"sk-{MARK}-key",
            "PROVIDER_URL": f"http://eve:{MARK}-password@127.0.0.1:{port}",
            "OPENAI_LOG": "debug",
            "ANTHROPIC_LOG": "debug",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, wire, *FAULTS, *ON_THE_WAY),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = (each.decode() for each in await process.communicate())
    assert process.returncode == 0, errors

    for text in (out, errors):
        assert MARK not in text, text[max(0, text.index(MARK) - 300) :][:400]
        assert "[secret]" in text
    told = {line.partition(" ")[0]: line for line in out.splitlines()}
    assert told.keys() == {*FAULTS, *ON_THE_WAY}
    for fault, words in SAID.items():
        assert re.search(re.escape(words), told[fault]), told[fault]
