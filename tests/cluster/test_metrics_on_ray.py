"""Metrics of a real squad: by port, command line, Ray and Prometheus, through SIGKILL of replica and bridge."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from squadron import Agent, Context, Retry, Squad, topic
from squadron.bridge.metrics.dashboard import dashboard
from squadron.bridge.serve import local
from squadron.runtime.errors import SquadronError
from tests import prometheus
from tests.cluster.conftest import until


class Teller(Agent):
    """Answers, tries again, gives up."""

    @topic("teller.say")
    async def say(self, text: str) -> str:
        return text

    @topic("teller.again", max_attempts=2)
    async def again(self, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry("not yet", after_s=0.01)
        return ctx.attempt

    @topic("teller.never", max_attempts=1)
    async def never(self) -> None:
        raise ValueError("never")


Samples = dict[tuple[str, ...], float]

#: Panels of what nobody does here: ask models, and keep an audit trail.
UNUSED = {
    "Tokens per second, by model and type",
    "Cost per hour, US dollars",
    "Model calls: p50 and p95 time",
    "Model calls that failed, and wait for provider limits",
    "Audit trail: messages to take up, and gaps",
}

SAID = ("squadron_tasks_total", "teller", "result", "teller.say")


def _samples(text: str, prefix: str = "") -> Samples:
    """Name and values of our own labels, sorted by the labels' names."""
    ours = {"agent", "agent_id", "topic", "outcome", "status", "state", "le", "model", "stream"}
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = [value for name, value in sorted(sample.labels.items()) if name in ours]
            name = (sample.name.removeprefix(prefix), *values)
            # Ray's have one for each worker that ever told it.
            found[name] = found.get(name, 0) + sample.value
    return found


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


async def _scrape(squad: Squad) -> Samples:
    status = await squad.status()
    return _samples(await asyncio.to_thread(_read, status["metrics"]))


async def _shows(squad: Squad, expected: Samples) -> None:
    async def is_so() -> bool:
        try:
            found = await _scrape(squad)
        except (SquadronError, OSError):
            return False
        return all(found.get(name) == value for name, value in expected.items())

    await until(is_so)


async def _say(squad: Squad, times: int) -> None:
    for number in range(times):
        assert (await squad.ask("teller.say", {"text": str(number)})).unwrap() == str(number)


async def test_counters_outlive_a_killed_replica_and_a_killed_bridge(squad: Squad) -> None:
    await squad.deploy(Teller)
    before = (await _scrape(squad)).get(SAID, 0)
    await _say(squad, 5)
    assert (await squad.ask("teller.again", {})).unwrap() == 2
    assert (await squad.ask("teller.never", {})).kind == "dead_lettered"
    await _shows(
        squad,
        {
            SAID: before + 5,
            ("squadron_task_retries_total", "teller", "teller.again"): 1,
            ("squadron_dead_letters", "teller"): 1,
            ("squadron_replicas", "teller", "running"): 1,
            ("squadron_mailbox_tasks", "teller", "waiting"): 0,
            ("agent_tasks_total", "teller", "dead_lettered"): 1,
        },
    )

    status = await squad.status()
    root = status["metrics"].removesuffix("/metrics")
    for path, looked_at in (("healthz", {"loop"}), ("readyz", {"nats", "bridge"})):
        told = json.loads(await asyncio.to_thread(_read, f"{root}/{path}"))
        assert told.pop("ok") is True
        assert told.keys() == looked_at
    (replica,) = next(each["replicas"] for each in status["agents"] if each["agent"] == "teller")
    os.kill(replica["pid"], signal.SIGKILL)
    await _say(squad, 3)
    await _shows(squad, {SAID: before + 8})

    os.kill(status["pid"], signal.SIGKILL)
    await _say(squad, 2)

    async def back() -> bool:
        try:
            return (await squad.status())["pid"] != status["pid"]
        except SquadronError:
            return False

    await until(back)
    # It shows at least what was stored, at once, and never less than that.
    assert (await _scrape(squad))[SAID] >= before + 8
    await _shows(squad, {SAID: before + 10, ("agent_tasks_total", "teller", "dead_lettered"): 1})


async def test_the_command_line_prints_them_and_a_file_tells_prometheus_where_they_are(squad: Squad) -> None:
    await squad.deploy(Teller)
    await _say(squad, 1)
    text = await squad.metrics()
    home = squad.settings.home
    command = Path(sys.executable).with_name("squadron")
    printed = await asyncio.create_subprocess_exec(command, "--home", str(home), "metrics", stdout=subprocess.PIPE)
    out, _ = await printed.communicate()
    assert printed.returncode == 0
    assert {name for name, *_ in _samples(text)} <= {name for name, *_ in _samples(out.decode())}

    (target,) = json.loads((home / "metrics" / "dev.json").read_text())
    status = await squad.status()
    assert status["metrics"] == f"http://{target['targets'][0]}/metrics"
    assert target["labels"] == {"environment": "dev"}


async def _silent(address: str, *, of_ray: bool) -> set[str]:
    """Panels of the dashboard whose queries give nothing, once there are rates."""
    tasks = f"rate({'ray_' if of_ray else ''}squadron_tasks_total[1m])"

    async def rates() -> bool:
        return bool(await asyncio.to_thread(prometheus.query, address, tasks))

    await until(rates)
    silent = set()
    for panel in dashboard(of_ray=of_ray)["panels"]:
        queries = [target["expr"] for target in panel["targets"]]
        filled = [each.replace("$__rate_interval", "1m").replace("$agent", ".*") for each in queries]
        # A query that can't be carried out fails here.
        given = [await asyncio.to_thread(prometheus.query, address, promql) for promql in filled]
        if not any(given):
            silent.add(panel["title"])
    return silent


def _targets(squad: Squad) -> Path:
    """The file in which Ray tells its Prometheus what to scrape."""
    at = local.find(squad.settings.home)
    assert at is not None
    return Path(at.temp_dir, "session_latest/prom_metrics_service_discovery.json")


def _of_ray(squad: Squad) -> Samples:
    """What Ray's own Prometheus would read."""
    found = json.loads(_targets(squad).read_text())
    texts = []
    for address in (address for group in found for address in group["targets"]):
        # Ray names some before they answer.
        with contextlib.suppress(OSError):
            texts.append(_read(f"http://{address}/metrics"))
    return _samples("\n".join(texts), "ray_")


async def test_a_port_that_is_taken_or_not_wanted_is_no_reason_to_fail_and_bound_actors_count(
    squad: Squad, tmp_path: Path
) -> None:
    @ray.remote(num_cpus=0)
    class Adder:
        def add(self, a: int, b: int) -> int:
            return a + b

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = dataclasses.replace(squad.settings, env="metrics-b", metrics=f"127.0.0.1:{taken.getsockname()[1]}")
        try:
            async with Squad.up(other) as second:
                assert (await second.status())["metrics"] == ""
                bridge = ray.get_actor("squadron-bridge-metrics-b", namespace="squadron")
                adder = Adder.options(name="metrics-adder", lifetime="detached").remote()
                await bridge.bind.remote("sums.add", adder, "add")
                assert (await second.ask("sums.add", {"a": 1, "b": 2})).unwrap() == 3

                async def counted() -> bool:
                    return 'outcome="result",topic="sums.add"} 1.0' in await second.metrics()

                await until(counted)
                ray.kill(adder)
        finally:
            ray.kill(ray.get_actor("squadron-bridge-metrics-b", namespace="squadron"))


@pytest.mark.slow
async def test_rays_own_metrics_have_them_and_a_bridge_that_is_replaced_counts_nothing_twice(
    squad: Squad, tmp_path: Path
) -> None:
    await squad.deploy(Teller)
    assert (await squad.ask("teller.again", {})).unwrap() == 2
    assert (await squad.ask("teller.never", {})).kind == "dead_lettered"

    async def ray_says(name: tuple[str, ...], value: float) -> None:
        async def is_so() -> bool:
            return (await asyncio.to_thread(_of_ray, squad)).get(name) == value

        await until(is_so)

    async def steady() -> Samples | None:
        first = await asyncio.to_thread(_of_ray, squad)
        # Ray tells of what was counted every ten seconds.
        await asyncio.sleep(12)
        second = await asyncio.to_thread(_of_ray, squad)
        return second if first.get(SAID) == second.get(SAID) else None

    before = (await until(steady)).get(SAID, 0)
    await _say(squad, 4)
    await ray_says(SAID, before + 4)
    await ray_says(("squadron_replicas", "teller", "running"), 1)

    status = await squad.status()
    os.kill(status["pid"], signal.SIGKILL)

    async def back() -> bool:
        try:
            return (await squad.status())["pid"] != status["pid"]
        except SquadronError:
            return False

    await until(back)
    await _say(squad, 3)
    await ray_says(SAID, before + 7)

    if why := await asyncio.to_thread(prometheus.why_not):
        pytest.skip(why)
    with prometheus.server(tmp_path, targets=str(_targets(squad))) as address:
        assert await _silent(address, of_ray=True) == UNUSED - {"Model calls: p50 and p95 time"}


@pytest.mark.slow
async def test_a_real_prometheus_scrapes_a_running_squad(squad: Squad, tmp_path: Path) -> None:
    if why := await asyncio.to_thread(prometheus.why_not):
        pytest.skip(why)
    await squad.deploy(Teller)
    await _say(squad, 6)
    assert (await squad.ask("teller.never", {})).kind == "dead_lettered"
    assert prometheus.promtool("check", "metrics", stdin=await squad.metrics()).strip() == ""

    with prometheus.server(tmp_path, targets=f"{squad.settings.home}/metrics/*.json") as address:

        async def scraped() -> bool:
            found = await asyncio.to_thread(prometheus.query, address, "agent_tasks_total")
            return found.get(("teller", "result"), 0) >= 6

        await until(scraped)
        tasks = prometheus.query(address, 'agent_tasks_total{agent_id="teller"}')
        assert tasks[("teller", "dead_lettered")] >= 1

        async def each_attempt_took_its_time() -> bool:
            # Two scrapes may lie between the first answer and the last.
            names = 'agent_task_duration_seconds_count{agent_id="teller"}', 'agent_tasks_total{agent_id="teller"}'
            counts, ends = (prometheus.query(address, each) for each in names)
            retries = prometheus.query(address, "sum(squadron_task_retries_total)")
            return counts[("teller",)] == sum(ends.values()) + retries.get((), 0)

        await until(each_attempt_took_its_time)
        p95 = "histogram_quantile(0.95, sum by (le) (agent_task_duration_seconds_bucket))"
        assert 0 < prometheus.query(address, p95)[()] < 600
        assert prometheus.query(address, "up") == {(): 1}
        assert await _silent(address, of_ray=False) == UNUSED
        assert prometheus.query(address, 'squadron_replicas{state="running"}')[("teller", "running")] == 1
