"""The command line as people use it: separate processes that find each other in one home, with no flags."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.utils import canonicalize_name

from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve import local
from squadron.config import Settings
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from tests.contract.nats_cluster import free_port

Run = Callable[..., subprocess.CompletedProcess[str]]

#: A whole demo, with Ray's start and on a busy machine.
LONG_S = 170

AGENTS = """
    import asyncio
    from collections.abc import AsyncIterator

    from squadron import Agent, Context, Retry, topic

    class Poet(Agent):
        '''Writes very short poems.'''

        @topic("poem.write", examples=["a verse about the sea"], tags=["poetry"])
        async def write(self, ctx: Context, subject: str, lines: int = 1) -> list[str]:
            '''Write a poem about something.'''
            for number in range(lines):
                await ctx.emit(f"{subject} {number};")
            return [f"{subject} {number}" for number in range(lines)]

    class Shouter(Agent):
        @topic("text.shout")
        def shout(self, text: str) -> str:
            '''Make a text loud.'''
            return text.upper()

        @topic("text.wait")
        async def wait(self) -> AsyncIterator[str]:
            '''Takes a minute, and says when it begins.'''
            yield "begun"
            await asyncio.sleep(60)

        @topic("mind.brood")
        async def brood(self, text: str) -> None:
            '''Think about it for a minute.'''
            await asyncio.sleep(60)

        @topic("text.retry")
        async def retry(self, ctx: Context) -> AsyncIterator[str]:
            '''Goes well the second time.'''
            yield "one "
            if ctx.attempt == 1:
                raise Retry("not yet", after_s=0.1)
            yield "two"
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the user works, and below it the home of their servers."""
    with tempfile.TemporaryDirectory(prefix="sq-cli-") as made:
        Path(made, "my_agents.py").write_text(textwrap.dedent(AGENTS))
        yield Path(made)


@pytest.fixture(scope="module")
def environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "SQUADRON_HOME": str(folder / "home")}


@pytest.fixture(scope="module")
def squadron(folder: Path, environ: dict[str, str]) -> Iterator[Run]:
    """Runs the installed command in a process of its own, in the user's folder."""

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("squadron")), *arguments],
            cwd=folder,
            env=environ,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )

    yield run
    run("down")


@pytest.fixture(scope="module")
def up(squadron: Run) -> dict[str, Any]:
    """What `squadron up --json` printed, once for the module."""
    ended = squadron("up", "--json")
    assert ended.returncode == 0, ended.stderr
    steps = [line.partition("] ")[2] for line in ended.stderr.splitlines()]
    assert steps == ["starting NATS", "connecting to NATS", "starting Ray", "starting the bridge"]
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


@pytest.fixture(scope="module")
def deployed(squadron: Run, up: dict[str, Any]) -> Run:
    """The command, where the agents of the user's module run."""
    ended = squadron("deploy", "my_agents:Poet", "my_agents:Shouter", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "deployed": [
            {"agent": "poet", "topics": ["poem.write"]},
            {"agent": "shouter", "topics": ["mind.brood", "text.retry", "text.shout", "text.wait"]},
        ]
    }
    return squadron


def test_up_tells_the_addresses_and_how_to_get_past_the_tokens(up: dict[str, Any], folder: Path) -> None:
    assert up["started"] is True
    assert up["environment"] == "dev"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", up["dashboard"])
    assert Path(up["dashboard_token_file"]).read_text()
    assert json.loads(Path(up["nats_token_file"]).read_text())["token"]


def test_up_is_idempotent_and_tells_people_the_next_steps(squadron: Run, up: dict[str, Any]) -> None:
    ended = squadron("up")

    assert ended.returncode == 0
    assert "Environment dev runs already." in ended.stdout
    assert up["dashboard"] in ended.stdout
    assert "squadron deploy module:Agent" in ended.stdout


def test_another_process_asks_with_no_flags(deployed: Run) -> None:
    ended = deployed("ask", "text.shout", "text=love = all")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "LOVE = ALL\n", "")


def test_values_fit_the_schema_and_the_result_is_json(deployed: Run) -> None:
    ended = deployed("ask", "poem.write", "subject=12", "lines=2")

    assert json.loads(ended.stdout) == ["12 0", "12 1"]


def test_the_whole_outcome_is_there_for_programs(deployed: Run) -> None:
    told = json.loads(deployed("ask", "text.shout", "text=x", "--json").stdout)

    assert told["outcome"] == "result"
    assert told["data"] == "X"
    assert told["source"].startswith("shouter-")


def test_ask_has_the_options_of_every_other_way_of_asking(deployed: Run) -> None:
    ids = ("--task-id", "mine", "--conversation", "talk-7", "--priority", "7", "--start-within", "30")
    limits = ("--tokens", "1000", "--hops", "2", "--usd", "1.5", "--rounds", "3", "--tasks", "4")
    model = ("--parameter", "temperature=0.2", "--target", "shouter")
    told = json.loads(deployed("ask", "text.shout", "text=x", *ids, *limits, *model, "--json").stdout)
    assert (told["task_id"], told["data"]) == ("mine", "X")

    other = deployed("ask", "text.shout", "text=y", "--task-id", "mine")
    assert other.returncode == 1
    assert "with another input" in other.stderr
    excluded = deployed("ask", "text.shout", "text=x", "--exclude", "shouter")
    assert excluded.returncode == 1
    assert "shouter is excluded" in excluded.stderr


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_piped_json_is_the_input(deployed: Run, dash: tuple[str, ...]) -> None:
    assert deployed("ask", "text.shout", *dash, stdin='{"text": "piped"}').stdout == "PIPED\n"


def test_piped_text_that_is_not_json_is_bad_input(deployed: Run) -> None:
    ended = deployed("ask", "text.shout", "-", stdin="text")

    assert ended.returncode == 2
    assert "stdin is not JSON" in ended.stderr


def test_a_stream_is_printed_as_it_comes_and_the_result_after_it(deployed: Run) -> None:
    lines = deployed("ask", "poem.write", "subject=sea", "lines=2", "--stream", "--json").stdout.splitlines()

    assert [json.loads(line) for line in lines[:-1]] == [{"chunk": "sea 0;"}, {"chunk": "sea 1;"}]
    assert json.loads(lines[-1])["data"] == ["sea 0", "sea 1"]


def test_a_retried_stream_is_printed_anew_and_its_result_not_twice(deployed: Run) -> None:
    ended = deployed("ask", "text.retry", "--stream")

    assert (ended.stdout, ended.stderr) == ("one \none two\n", "attempt 2: starting over\n")
    lines = deployed("ask", "text.retry", "--stream", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines[:3]] == [{"chunk": "one "}, {"restarted": 2}, {"chunk": "one "}]


def test_ctrl_c_cancels_the_task(deployed: Run, folder: Path, environ: dict[str, str]) -> None:
    process = _started(["ask", "text.wait", "--stream"], folder, environ)
    assert process.stdout is not None
    assert process.stdout.read(5) == "begun"

    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=30)

    assert process.returncode == 130
    assert (rest, told) == ("\n", "cancelled\n")
    agents = json.loads(deployed("status", "--json").stdout)["agents"]
    assert [agent["taken"] for agent in agents if agent["agent"] == "shouter"] == [0]


def _started(arguments: list[str], folder: Path, environ: dict[str, str]) -> subprocess.Popen[str]:
    """A command that can be interrupted, as on a terminal; in a background script it would ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [str(Path(sys.executable).with_name("squadron")), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True)
    signal.signal(signal.SIGINT, before)
    return process


def test_an_unknown_topic_ends_with_1_and_the_nearest_names(deployed: Run) -> None:
    ended = deployed("ask", "poem.wriet", "subject=x")

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "did you mean poem.write" in ended.stderr


def test_wrong_input_ends_with_1_and_the_field(deployed: Run) -> None:
    ended = deployed("ask", "poem.write", "subject=x", "lines=many")

    assert ended.returncode == 1
    assert 'field \'lines\': "many" is not of type "integer"' in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_topics_are_listed_and_found_by_intent(deployed: Run) -> None:
    listed = deployed("topics").stdout.splitlines()
    found = json.loads(deployed("topics", "--search", "write me a verse", "--json").stdout)

    assert [line.split("\t")[:3] for line in listed] == [
        ["poem.write", "poet", "subject: string, lines: integer = 1"],
        ["mind.brood", "shouter", "text: string"],
        ["text.retry", "shouter", "no fields"],
        ["text.shout", "shouter", "text: string"],
        ["text.wait", "shouter", "no fields"],
    ]
    assert found[0]["name"] == "poem.write"
    assert found[0]["score"] > 0


def test_status_shows_agents_and_replicas(deployed: Run) -> None:
    told = json.loads(deployed("status", "--json").stdout)
    shown = deployed("status").stdout

    agents = {each["agent"]: each for each in told["agents"]}
    assert agents["poet"]["status"] == "RUNNING"
    assert agents["poet"]["running"] == 1
    assert re.search(r"poet +RUNNING +1/1 +1\.\.4 +0 +0 +poem\.write", shown)


def test_scale_is_in_place(deployed: Run) -> None:
    before = replicas(deployed, "shouter")

    ended = deployed("scale", "shouter=2", "poet=1..2", "--json")

    assert json.loads(ended.stdout) == {"shouter": "2", "poet": "1..2"}
    give_up_at = time.monotonic() + 60
    while len(after := replicas(deployed, "shouter")) < 2 and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert len(after) == 2
    assert before < after
    assert json.loads(deployed("scale", "shouter=auto", "--json").stdout) == {"shouter": "1..4"}


def replicas(squadron: Run, agent: str) -> set[str]:
    agents = json.loads(squadron("status", "--json").stdout)["agents"]
    return {each["id"] for one in agents if one["agent"] == agent for each in one["replicas"]}


def test_what_is_not_deployed_can_be_neither_scaled_nor_undeployed(deployed: Run) -> None:
    for arguments in (("scale", "nobody=2"), ("undeploy", "nobody")):
        ended = deployed(*arguments)
        assert ended.returncode == 2
        assert "no agent 'nobody' is deployed (deployed are poet, shouter" in ended.stderr


def test_doctor_sees_what_runs(deployed: Run) -> None:
    ended = deployed("doctor", "--json")

    found = {check["name"]: check["found"] for check in json.loads(ended.stdout)["checks"]}
    assert found["nats"].startswith("runs at nats://127.0.0.1:")
    assert found["bridge"].startswith("answers for environment dev")
    assert {name: found[name] for name in ("releases", "clocks", "restarts", "topics", "storage")} == {
        "releases": "well",
        "clocks": "well",
        "restarts": "well",
        "topics": "well",
        "storage": "well",
    }
    assert "not looked at" not in found
    assert ended.returncode == 0


def test_health_is_an_exit_code(deployed: Run) -> None:
    ended = deployed("health", "--within", "20", "--json")

    told = json.loads(ended.stdout)
    assert (told["ok"], told["nats"]["ok"], told["bridge"]["ok"]) == (True, True, True)
    assert ended.returncode == 0


def test_each_task_leaves_a_line_in_rays_files_which_the_dashboard_shows(deployed: Run, folder: Path) -> None:
    home = folder / "home"
    asked = json.loads(deployed("ask", "text.shout", "text=hello", "--json").stdout)
    ray = local.find(home)
    assert ray is not None

    def line_in(text: str) -> dict[str, Any] | None:
        lines = [line for line in text.splitlines() if "task.ended" in line and asked["task_id"] in line]
        return json.loads(lines[0]) if lines else None

    # Ray's own session; the link to the latest is another's if the machine has several.
    while not (files := [each for each in Path(ray.temp_dir).rglob("logs/*.err") if line_in(each.read_text())]):
        time.sleep(0.05)
    line = line_in(files[0].read_text())
    assert line is not None
    assert (line["agent"], line["topic"], line["outcome"]) == ("shouter", "text.shout", "result")
    assert line["waited_ms"] >= 0

    status = json.loads(deployed("status", "--json").stdout)
    token = (home / "ray" / "token").read_text().strip()

    def fetch(path: str) -> bytes:
        asking = urllib.request.Request(
            f"{status['dashboard']}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asking, timeout=60) as answer:
            return bytes(answer.read())

    nodes = json.loads(fetch("/api/v0/nodes"))["data"]["result"]["result"]
    shown = fetch(f"/api/v0/logs/file?node_id={nodes[0]['node_id']}&filename={files[0].name}&lines=-1")
    assert line_in(shown.decode()) == line


def test_another_environment_is_not_there(deployed: Run) -> None:
    ended = deployed("--env", "prod", "status")

    assert ended.returncode == 3
    assert "environment 'prod' was never started" in ended.stderr


@pytest.mark.timeout(LONG_S)
def test_the_demo_audits_every_distribution_and_all_tasks_end_in_results(deployed: Run, folder: Path) -> None:
    ended = deployed("demo", "--json", "--out", "audit")

    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    installed = _installed()
    assert told["tasks"]["outcomes"] == {"result": told["tasks"]["dispatched"]}
    assert told["tasks"]["dispatched"] == 2 + 3 * told["distributions"]
    assert told["distributions"] == len(installed)
    assert told["model"] == "offline:planner"
    assert told["rounds"] >= 2
    assert told["report"] == str(folder / "audit" / "report.md")
    data = json.loads((folder / "audit" / "report.json").read_text())
    assert {canonicalize_name(one["name"]) for one in data["distributions"]} == installed
    assert all(one["risk"] and one["spdx"] for one in data["distributions"])
    markdown = (folder / "audit" / "report.md").read_text()
    assert "ray" in markdown
    assert "Where the time went" in ended.stderr
    assert "fixed plan" in ended.stderr
    # It found a squad running, and left it as it was.
    served = {line.split("\t")[0] for line in deployed("topics").stdout.splitlines()}
    assert served == {"mind.brood", "poem.write", "text.retry", "text.shout", "text.wait"}


def _installed() -> set[str]:
    """What an interpreter of this environment sees; this one has Ray's own packages on its path, too."""
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions() if d.name))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {canonicalize_name(name) for name in names.split()}


def test_run_without_a_model_puts_the_goal_to_what_fits_and_says_so(deployed: Run) -> None:
    ended = deployed("run", "make this text loud", "--model", "offline", "--topic", "text.*")

    assert ended.returncode == 0, ended.stderr
    assert "MAKE THIS TEXT LOUD" in ended.stdout
    assert "no LLM" in ended.stderr


def test_ctrl_c_cancels_a_run_with_all_that_it_asked_of_others_and_names_it(
    deployed: Run, folder: Path, environ: dict[str, str]
) -> None:
    command = ["run", "think about it", "--model", "offline", "--topic", "mind.brood", "--keep"]
    process = _started([*command, "--json"], folder, environ)

    def taken() -> list[int]:
        agents = json.loads(deployed("status", "--json").stdout)["agents"]
        return [agent["taken"] for agent in agents if agent["agent"] == "shouter"]

    # What it asked of others is under way.
    while taken() != [1]:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)

    assert (process.returncode, printed) == (130, "")
    runs = json.loads(deployed("runs", "list", "--json").stdout)
    (run,) = (each for each in runs if each["state"] == "cancelled")
    assert f"Cancelled {run['run']}. It can go on: squadron runs resume {run['run']}" in told
    assert "mind.brood" in deployed("runs", "show", run["run"][:12]).stdout
    assert taken() == [0]


def test_run_of_a_goal_that_nobody_can_pursue_ends_with_1(deployed: Run) -> None:
    ended = deployed("run", "translate it into Frisian", "--model", "offline", "--topic", "nobody.*")

    assert ended.returncode == 1, ended.stderr
    assert "I can't pursue it" in ended.stdout


TILL = """
    from squadron import Agent, topic

    class Till(Agent):
        @topic("till.pay", max_attempts=1)
        async def pay(self, amount: int) -> int:
            '''Take money.'''
            BODY
"""


@pytest.mark.timeout(LONG_S)
async def test_what_was_given_up_is_redriven_once_the_agent_is_mended(deployed: Run, folder: Path) -> None:
    def deploy(body: str) -> None:
        Path(folder, "till.py").write_text(textwrap.dedent(TILL.replace("BODY", body)))
        assert deployed("deploy", "till:Till").returncode == 0

    deploy("raise ValueError('no change')")
    asked = deployed("ask", "till.pay", "amount=5", "--json")
    assert asked.returncode == 1
    id = json.loads(asked.stdout)["task_id"]

    listed = deployed("dlq", "list", "--topic", "till.*").stdout.splitlines()
    assert [line.split("\t")[:4] for line in listed] == [[id, "till", "till.pay", "1"]]
    shown = json.loads(deployed("dlq", "show", id[:8], "--json").stdout)
    assert (shown["attempts"], shown["last_error"]) == (1, "ValueError: no change")
    assert json.loads(shown["message"])["payload"]["content"] == {"amount": 5}

    deploy("return amount")
    redriven = deployed("dlq", "redrive", id[:8], "--json")
    assert json.loads(redriven.stdout) == {"redriven": [id], "left": {}}
    content = await asyncio.wait_for(_result_of(id, folder / "home"), 30)
    assert (content["data"], content["attempt"]) == (5, 1)
    assert deployed("dlq", "list", "--json").stdout == "[]\n"
    assert deployed("undeploy", "till").returncode == 0


async def _result_of(id: str, home: Path) -> dict[str, Any]:
    """The first good outcome of a task, as it is stored."""
    wiring = await Wiring.open(Settings.load({}, home=home), AgentIdentity(id="reader"))
    try:
        while True:
            async for entry in wiring.ports.lite.read(f"agents.dev.lite.*.{id}"):
                content: dict[str, Any] = AgentMessage.decode(entry.data).payload.content
                if content["success"]:
                    return content
            await asyncio.sleep(0.05)
    finally:
        await wiring.aclose()


@pytest.mark.timeout(LONG_S + 30)
def test_live_views_show_what_runs_passes_and_took_its_time(
    deployed: Run, folder: Path, environ: dict[str, str]
) -> None:
    command = [
        str(Path(sys.executable).with_name("squadron")),
        "tail",
        "--topic",
        "text.*",
        "-n",
        "2",
        "--contents",
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environ, **pipes) as tail:
        assert tail.stderr is not None
        assert "Listening" in tail.stderr.readline()
        assert deployed("ask", "text.shout", "text=hi", "--task-id", "watched").returncode == 0
        passed, _ = tail.communicate(timeout=LONG_S)
    task, result = [line.split("\t") for line in passed.splitlines()]
    assert (task[1:4], task[6], task[10]) == (["task", "text.shout", "watched"], "shouter", '{"text": "hi"}')
    assert (result[1:4], result[7], result[10]) == (["result", "text.shout", "watched"], "result", "HI")

    lanes = json.loads(deployed("trace", "watched", "--json").stdout)["lanes"]
    # How long it had waited is drawn before it, if it did.
    assert [(lane["name"], lane["bars"][-1]["kind"]) for lane in lanes] == [("shouter", "work")]

    agents = json.loads(deployed("top", "--once", "--json").stdout)["agents"]
    shouter = next(each for each in agents if each["agent"] == "shouter")
    # Two for a while, if it was scaled up before.
    assert (shouter["running"], shouter["waiting"]) == (len(shouter["replicas"]), 0)
    assert shouter["replicas"]
    assert shouter["rates"][0] is not None

    assert int(deployed("lite", "publish", "chat/one", "-", "--ttl", "60", stdin='["piped"]').stdout) > 0
    assert [each["id"] for each in json.loads(deployed("lite", "list", "chat", "--json").stdout)] == ["one"]
    assert deployed("lite", "read", "chat/one").stdout.endswith('["piped"]\n')
    assert deployed("lite", "close", "chat/one", "--yes").returncode == 0
    assert deployed("lite", "list", "chat", "--json").stdout == "[]\n"

    script = """
from squadron import Squad

with Squad.connect() as squad, squad.listen(contents=True) as passing:
    squad.ask("text.shout", {"text": "plain"}, task_id="heard")
    mine = (it for it in passing if it.id == "heard")
    print(next(mine).content, next(mine).content["data"], squad.runs.trace("heard")[0].lanes[-1].name)
    print(squad.map(0.2).to_dicts(), squad.lite_topics("chat"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.stdout.splitlines() == ["{'text': 'plain'} PLAIN shouter", "[] []"], done.stderr


def test_a_squad_is_made_as_a_file_declares_it_and_again_is_no_change(deployed: Run, folder: Path) -> None:
    (folder / "squad.yaml").write_text(
        "environment: dev\n"
        "agents:\n"
        "  - class: my_agents:Poet\n"
        "    scale: 2\n"
        "    slots: 3\n"
        "  - class: my_agents:Shouter\n"
    )
    # Tests before this one may have scaled it by hand.
    assert deployed("scale", "poet=auto").returncode == 0
    planned = deployed("deploy", "-f", "squad.yaml", "--diff")
    assert planned.returncode == 1, planned.stderr
    assert "~ poet: slots 32 → 3, scale 1..4 → 2" in planned.stdout
    assert status_of(deployed, "poet")["slots"] == 32, "a diff changes nothing"

    applied = deployed("deploy", "-f", "squad.yaml", "--json")
    assert applied.returncode == 0, applied.stderr
    told = json.loads(applied.stdout)
    assert told["applied"] is True
    assert {each["agent"]: each["what"] for each in told["changes"]} == {"poet": "change", "shouter": "keep"}
    poet = status_of(deployed, "poet")
    assert (poet["scale"], poet["slots"]) == ("2", 3)

    again = deployed("deploy", "-f", "squad.yaml", "--diff", "--json")
    assert again.returncode == 0, again.stdout
    assert {each["what"] for each in json.loads(again.stdout)["changes"]} == {"keep"}

    (folder / "squad.yaml").write_text("agents:\n  - {class: 'my_agents:Poet', scale: 1..3}\n")
    pruned = deployed("deploy", "-f", "squad.yaml", "--prune")
    assert pruned.returncode == 0, pruned.stderr
    assert "- shouter" in pruned.stdout
    assert "poet: slots 3 → 32" in pruned.stdout
    assert status_of(deployed, "poet")["scale"] == "1..3"
    assert deployed("deploy", "my_agents:Shouter").returncode == 0


def test_a_file_has_new_code_come_as_a_canary_and_promotes_it_when_it_says_no_more_of_it(
    deployed: Run, folder: Path
) -> None:
    file, module = folder / "squad.yaml", folder / "my_agents.py"
    plain = "agents:\n  - {class: 'my_agents:Poet', scale: 1..3}\n"
    file.write_text(plain)
    assert deployed("deploy", "-f", "squad.yaml").returncode == 0
    before = status_of(deployed, "poet")
    module.write_text(module.read_text().replace('[f"{subject} {number}" for', '[f"{subject}, {number}" for'))
    file.write_text(plain.replace("1..3}", "1..3, canary: 50%}"))
    planned = deployed("deploy", "-f", "squad.yaml", "--diff")
    assert planned.returncode == 1, planned.stderr
    assert "poet: canary" in planned.stdout

    applied = deployed("deploy", "-f", "squad.yaml")
    assert applied.returncode == 0, applied.stderr
    both = status_of(deployed, "poet")
    assert both["version"] == before["version"] != both["canary"]["version"]
    assert both["canary"]["weight"] == 50
    assert deployed("deploy", "-f", "squad.yaml", "--diff").returncode == 0, "again is no change"

    file.write_text(plain)
    promoted = deployed("deploy", "-f", "squad.yaml")
    assert promoted.returncode == 0, promoted.stderr
    alone = status_of(deployed, "poet")
    assert (alone["version"], alone["canary"]) == (both["canary"]["version"], None)
    assert "sea, 0" in deployed("ask", "poem.write", "subject=sea").stdout


def status_of(squadron: Run, agent: str) -> dict[str, Any]:
    """What `squadron status` says of an agent."""
    told = json.loads(squadron("status", "--json").stdout)
    (found,) = [each for each in told["agents"] if each["agent"] == agent]
    return dict(found)


def test_undeploy_takes_an_agent_away(deployed: Run) -> None:
    assert deployed("undeploy", "shouter").returncode == 0

    ended = deployed("ask", "text.shout", "text=x")

    assert ended.returncode == 1
    assert "nobody serves 'text.shout'" in ended.stderr


# The last two stop the module's servers.


def test_down_stops_everything_and_deletes_when_told(deployed: Run, folder: Path) -> None:
    port = free_port()
    opened = deployed("gateway", "--mcp", "--serve", "1", "--port", str(port))
    assert opened.returncode == 0, opened.stderr
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).json() == {"status": "ready"}

    ended = deployed("down", "--delete-data", "--json")

    assert json.loads(ended.stdout)["stopped"] == ["ray", "nats"]
    assert embedded.find(folder / "home") is None
    assert local.find(folder / "home") is None
    assert not (folder / "home" / "nats").exists()
    assert deployed("status").returncode == 3
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60)


def test_ctrl_c_while_servers_start_stops_them_again(squadron: Run, folder: Path, environ: dict[str, str]) -> None:
    process = _started(["up"], folder, environ)
    while embedded.find(folder / "home") is None and process.poll() is None:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]

    assert process.returncode == 130
    assert "Traceback" not in told
    assert "] stopping" in told
    assert embedded.find(folder / "home") is None
    assert local.find(folder / "home") is None
