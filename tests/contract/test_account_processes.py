"""Six replicas, each a process, share one account over a real nats-server; llmock counts as a provider does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from llmock.pytest_plugin import LLMock
from llmock.ratelimit import requested_tokens

from squadron.actors.thinking.quota import BURST_S
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings

ROOT = Path(__file__).parents[2]
REPLICAS, CALLERS, FOR_S = 6, 6, 30.0


async def _run(settings: Settings, llmock: LLMock, limits: dict[str, float]) -> list[dict[str, int]]:
    """Have all of them ask as fast as they may; returns what each did."""
    # The variables of the fixture would do, but for the key, which the accounts of all have to agree on.
    command = [llmock.base_url("openai"), str(FOR_S), str(CALLERS), json.dumps({"openai": limits})]
    processes = [
        await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "tests.llmock_replica", f"r{number}", *command],
            cwd=ROOT,
            env=os.environ | settings.environ(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for number in range(REPLICAS)
    ]
    outputs = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * REPLICAS, outputs
    return [json.loads(output.decode()) for output, _ in outputs]


def _spend(llmock: LLMock, *, tokens: int, left: float) -> None:
    """Leave a part of the bucket, which is full at first: whoever takes more than the rate is refused soon."""
    limiter = llmock._server.state.limiter
    settings, taken = limiter.settings, 0.0
    per_call = tokens if settings.tpm else 1
    while taken < (1 - left) * (settings.tpm or settings.rpm or 0):
        assert limiter.admit("openai", "k", tokens).allowed
        taken += per_call


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rpm", "tpm"])
async def test_six_replicas_use_nearly_all_of_the_quota_and_are_not_refused(
    what: str, wiring: Wiring, settings: Settings, llmock: LLMock
) -> None:
    limit = {"rpm": 600, "tpm": 600_000}[what]
    llmock.limits(**{what: limit})
    _spend(llmock, tokens=1_000, left=1.5 * BURST_S / 60)

    began = time.monotonic()
    told = await _run(settings, llmock, {what: limit})

    records = llmock.requests
    refused = [record for record in records if record.status == 429]
    passed = [record for record in records if record.status < 400]
    first, last = passed[0].started_at, passed[-1].started_at
    sizes = [requested_tokens(record.body, len(json.dumps(record.body))) for record in passed]
    used = (sum(sizes) if what == "tpm" else len(passed)) / (limit / 60 * (last - first))
    writes = [entry async for entry in wiring.ports.lite.read(wiring.ports.subjects.lite_of("model-account"))]
    took_s = time.monotonic() - began
    evidence = f"{used:.0%} used, {len(refused)} refused, {len(writes)} writes, {took_s:.0f} s: {told}"
    assert len(refused) <= 1, evidence
    assert used >= 0.9, evidence
    assert all(each["answered"] > 0 for each in told), evidence
    assert len(writes) <= 0.5 * FOR_S * REPLICAS + 4 * REPLICAS, evidence
    llmock.assert_resilient()
