"""Secrets in the shell of whoever starts a squad: whatever fails, none is found anywhere afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import re
import secrets
import stat
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nats
import nats.js.errors
import psutil
import pytest

from squadron.bridge.serve import local
from squadron.runtime.redact import STRUCK
from tests.contract.own_server import OwnServer
from tests.faulty_provider import FAULTS, faulty_provider

#: Only a hang takes so long, in seconds.
HANG_S = 600.0

PROGRAM = '''
    import asyncio, gc, hashlib, json, logging, os, sys, threading

    from functools import partial

    from squadron import Agent, AnthropicModel, Context, OpenAIModel, Squad, Terminal, on, on_durable, topic
    from squadron.actors.llm.llm_agent import LLMAgent
    from squadron.actors.llm.tools import tool
    from squadron.runtime.errors import SquadronError

    HELD = ("PASSED_API_KEY", "PASSED_TOKEN", "PASSED_PASSWORD", "PASSED_URL")
    # Here, and not where the agents run.
    KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
    WIRES = {
        "chat": partial(OpenAIModel, api="chat"),
        "responses": partial(OpenAIModel, api="responses"),
        "messages": AnthropicModel,
    }


    class Leaky(LLMAgent):
        """Fails with secrets in its hands."""

        async def on_start(self) -> None:
            # Not while tasks are running: it takes seconds, in which their leases run out.
            import anthropic, openai

        @topic("leak.local", max_attempts=1)
        async def local(self) -> None:
            keys = [os.environ[name] for name in HELD]
            raise RuntimeError(f"it broke with {len(keys)} keys")

        @topic("leak.text", max_attempts=2, backoff_s=(0.1, 0.1))
        async def text(self) -> None:
            try:
                raise KeyError(*(os.environ[name] for name in HELD))
            except KeyError as error:
                raise ValueError(f"Illegal header value b'Bearer {os.environ[HELD[0]]}'") from error

        @topic("leak.thread", max_attempts=1)
        def thread(self) -> None:
            raise ValueError(" ".join(os.environ[name] for name in HELD))

        @topic("leak.terminal")
        async def terminal(self) -> None:
            raise Terminal(f"refused: {os.environ[HELD[1]]}") from ValueError(os.environ[HELD[0]])

        @topic("leak.beside")
        async def beside(self, ctx: Context) -> None:
            """What breaks is not the handler itself, but what it leaves behind, or logs."""
            keys = [os.environ[name] for name in HELD]

            async def fail() -> None:
                raise ValueError(str(keys))

            def call() -> None:
                raise ValueError(str(keys))

            try:
                await fail()
            except ValueError as error:
                ctx.log.exception("leak.logged", error=error)
                logging.getLogger("theirs").exception("it broke: %s", error)
            forgotten = asyncio.create_task(fail())
            await asyncio.wait([forgotten])
            del forgotten
            gc.collect()
            asyncio.get_running_loop().call_soon(call)
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            await asyncio.sleep(0)

        @topic("leak.think", max_attempts=1)
        async def ask_model(self, ctx: Context) -> str:
            return await self.think(ctx, "hello")

        def make_model(self, spec: str) -> object:
            """One of whose calls some part goes wrong, with a password in its address."""
            if not spec.startswith("faulty:"):
                return super().make_model(spec)
            _, wire, fault = spec.split(":")
            url = os.environ["PASSED_PROVIDER_URL"] + "/" + fault
            if fault in ("refused", "address"):
                url = url.rpartition(":")[0] + {"refused": ":9", "address": ":port"}[fault]
            elif fault == "tls":
                url = url.replace("http:", "https:")
            patience_s = 1.0 if fault == "silent" else 30.0
            return WIRES[wire]("m", base_url=url, first_event_s=patience_s, between_events_s=patience_s)

        @topic("leak.seen")
        async def seen(self, digests: list[str]) -> dict[str, str]:
            """The names of the variables with these values, as they are without white space."""
            digest = lambda value: hashlib.sha256(value.strip().encode()).hexdigest()
            known = {digest(value): name for name, value in os.environ.items()}
            return {each: known[each] for each in digests if each in known}

        @on("leak.event")
        async def event(self, message: object) -> None:
            raise ValueError(os.environ[HELD[0]])

        @on_durable("leak.durable", max_attempts=1)
        async def durable(self, message: object) -> None:
            raise ValueError(os.environ[HELD[0]])


    class Stillborn(Agent):
        """Fails before it serves."""

        @topic("leak.never")
        async def never(self) -> None: ...

        async def on_start(self) -> None:
            raise ValueError(f"can't start with {os.environ[HELD[0]]}")


    async def told(what: str, work) -> None:
        try:
            print(what, (await work), flush=True)
        except SquadronError as error:
            print(what, repr(error), error, json.dumps(error.to_dict()), flush=True)


    async def fail_here(squad: Squad) -> None:
        """What breaks in this program itself."""
        failed = asyncio.Event()
        async with squad.follow("mine") as feed:
            feed.add_all()

            async def handler(id: str, items: object) -> None:
                keys = [os.environ[name] for name in KEYS]
                failed.set()
                raise ValueError(str(keys))

            async with asyncio.TaskGroup() as group:
                serving = group.create_task(feed.serve(handler))
                await squad.lite("one", "mine").publish(1)
                await failed.wait()
                await asyncio.sleep(0.1)
                serving.cancel()


    async def main() -> None:
        async with Squad.up() as squad:
            await squad.deploy(Leaky)
            digests, faulty = json.loads(sys.stdin.readline())
            seen = await squad.ask("leak.seen", {"digests": digests}, within_s=300.0)
            print("seen", json.dumps(seen.unwrap()), flush=True)
            await squad.publish("leak.event", {})
            await squad.publish_durable("leak.durable", {})
            leaks = ("local", "text", "thread", "terminal", "beside")
            asks = [squad.ask(f"leak.{each}", within_s=300.0) for each in leaks]
            asks += [squad.ask("leak.think", model="anthropic:some-model", within_s=300.0)]
            asks += [squad.run("do it", model="openai:some-model"), squad.deploy(Stillborn), fail_here(squad)]
            asks += [squad.ask("leak.think", model=each, within_s=300.0) for each in faulty]
            await asyncio.gather(*(told(f"told {n}", each) for n, each in enumerate(asks)))
            print("done", flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(main())
'''

#: The variables of the shell: keys that end as files of secrets do, those that agents get, and others.
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
PASSED = ("PASSED_API_KEY", "PASSED_TOKEN", "PASSED_PASSWORD", "PASSED_URL")
KEPT_BACK = ("AWS_SECRET_ACCESS_KEY", "SOMETHING_TOKEN", "RAY_REDIS_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS")
#: What may go wrong besides what the provider does.
ON_THE_WAY = ("refused", "tls", "address")


@dataclass
class Place:
    """A shell with secrets, a nats-server that asks for a password, and all that was found in either."""

    folder: Path
    server: OwnServer
    #: Is in every secret, and in nothing else.
    mark: str
    environ: dict[str, str]
    #: Everything that came out of the programs, or went over the bus, by where it was.
    found: dict[str, bytes] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def url(self) -> str:
        return self.environ["NATS_URL"]

    def leaks(self) -> list[str]:
        """Where a secret stands, with some of what is around it."""
        mark, places = self.mark.encode(), []
        for name, data in self.found.items():
            if (at := data.find(mark)) >= 0:
                places.append(f"{name}: {data[max(0, at - 200) : at + 60]!r}")
        return places


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="sq-tests-") as made:
        folder, mark = Path(made), secrets.token_hex(8)
        password = f"{mark}/nats"
        (folder / "nats").mkdir()
        server = OwnServer(folder / "nats", f'authorization {{ user: eve, password: "{password}" }}')
        server.start()
        environ = os.environ | {name: f"{mark}-{name}\r\n" for name in KEYS}
        environ |= {name: f"{mark}-{name}" for name in (*KEPT_BACK, *PASSED)}
        environ |= {
            "PASSED_URL": f"postgres://eve:{mark}-url@host/db",
            "NATS_URL": server.url.replace("://", f"://eve:{mark}%2Fnats@"),
            "OPENAI_BASE_URL": f"http://eve:{mark}-proxy@127.0.0.1:9/v1",
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
            "SQUADRON_PASS_ENV": "PASSED_*,*_LOG",
            "OPENAI_LOG": "debug",
            "ANTHROPIC_LOG": "debug",
            "SQUADRON_HOME": str(folder / "home"),
            "SQUADRON_LOG_LEVEL": "DEBUG",
        }
        (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
        try:
            yield Place(folder, server, mark, environ)
        finally:
            local.stop(folder / "home")
            server.stop()


async def _output(place: Place, *arguments: str) -> None:
    """Take in what the command line says, to a program or, after `pty`, to a person at a terminal."""
    command = str(Path(sys.executable).with_name("squadron"))
    if arguments[0] != "pty":
        process = await asyncio.create_subprocess_exec(
            command, *arguments, env=place.environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        place.found[" ".join(arguments)] = out + err
        return
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        command, *arguments[1:], env=place.environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    reading = asyncio.create_task(asyncio.to_thread(_read_terminal, ours))
    await process.wait()
    place.found[" ".join(arguments)] = await reading
    os.close(ours)


def _read_terminal(file: int) -> bytes:
    said = b""
    with suppress(OSError):  # nobody is at its other end any more
        while more := os.read(file, 65536):
            said += more
    return said


@asynccontextmanager
async def _program(place: Place, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, as long as it runs, with a provider at `port`; what it says on stderr is in a file."""
    place.environ["PASSED_PROVIDER_URL"] = f"http://eve:{place.mark}-provider@127.0.0.1:{port}"
    with (place.folder / "errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(place.folder / "program.py"),
            env=place.environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def _files(place: Place, *folders: Path) -> None:
    for path in (each for folder in folders for each in folder.rglob("*")):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink():
                place.found[str(path)] = path.read_bytes()


def _processes(place: Place) -> None:
    """Take in the cluster's command lines, and its environments but for what they are to have."""
    handed = (*PASSED, "PASSED_PROVIDER_URL")
    for process in local._members(place.home / "ray"):
        with suppress(psutil.Error):
            place.found[f"command line of {process.pid}"] = repr(process.cmdline()).encode()
            environ = {name: value for name, value in process.environ().items() if name not in handed}
            place.found[f"environment of {process.pid}"] = repr(environ).encode()


#: Run by `python`, joined to the cluster that is named: whatever Ray says of itself and keeps in its store.
_RAY_STATE = """
    import sys, ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
    from ray.util import state

    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    for kind in ("actors", "tasks", "workers", "jobs", "nodes", "runtime_envs", "objects"):
        listed = getattr(state, f"list_{kind}")
        for each in listed(sys.argv[1], detail=True, limit=10_000, raise_on_missing_output=False):
            print(kind, each)
    kept = 0
    for namespace in (None, b"serve", b"ray_serve", b"fun", b"cls", b"dashboard", b"job", b"gcs_config"):
        for key in _internal_kv_list(b"", namespace=namespace):
            kept += 1
            print("kept", key, _internal_kv_get(key, namespace=namespace))
    from ray import serve
    print("serve", serve.status())
    print("entries", kept)
"""


async def _ray_state(place: Place, ray: local.LocalRay) -> None:
    """Take in what Ray tells of its actors, tasks and workers, and what is in its control store."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(_RAY_STATE), ray.address),
        env=os.environ | local.environment(ray),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    place.found["state of Ray"] = said
    # Arguments of actors are in none of these.
    place.found["memory of the control store"] = await asyncio.to_thread(_memory, ray.gcs_pid, place.mark.encode())


def _memory(pid: int, mark: bytes) -> bytes:
    """What is around `mark` in the memory of a process; nothing if that can't be read here.

    Its own environment is in there, with what was named to be passed on to all.
    """
    found, secret = list[bytes](), re.compile(mark + b"(?!-PASSED|-url|-provider)")
    with suppress(OSError), open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            begin, end = (int(each, 16) for each in span.split("-"))
            if not mode.startswith("rw") or end - begin > 1 << 30:
                continue
            with suppress(OSError, ValueError):
                memory.seek(begin)
                data = memory.read(end - begin)
                found += [data[max(0, each.start() - 100) : each.end() + 40] for each in secret.finditer(data)]
    return b" ".join(found)


def _open_to_others(home: Path) -> list[str]:
    """The files of a home that others than its user may read."""

    def is_closed(path: Path) -> bool:
        return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0

    files = [path for path in home.rglob("*") if path.is_file()]
    around = {path: [path, *(each for each in path.parents if each.is_relative_to(home))] for path in files}
    return [str(path) for path, on_the_way in around.items() if not any(map(is_closed, on_the_way))]


async def _stored(place: Place, client: nats.aio.client.Client) -> None:
    """Take in all messages of all streams, those of the key-value and object stores included."""
    jetstream = client.jetstream()
    for stream in await jetstream.streams_info():
        # One that never held anything begins with 0, which is no message.
        for seq in range(max(1, stream.state.first_seq), stream.state.last_seq + 1):
            with suppress(nats.js.errors.NotFoundError):
                message = await jetstream.get_msg(stream.config.name, seq)
                where = f"{stream.config.name} {seq} {message.subject}"
                place.found[where] = (message.data or b"") + repr(message.headers).encode()


# Its own limit tells what hung.
@pytest.mark.timeout(HANG_S + 30)
@pytest.mark.parametrize("demo", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_whatever_fails_no_secret_is_found_anywhere(place: Place, demo: bool) -> None:
    async with asyncio.timeout(HANG_S):
        client = await nats.connect(place.server.url, user="eve", password=f"{place.mark}/nats")

        async def hear(message: nats.aio.msg.Msg) -> None:
            place.found[f"heard {len(place.found)} {message.subject}"] = (
                message.data + repr(message.headers).encode()
            )

        await client.subscribe(">", cb=hear)
        async with faulty_provider() as port, _program(place, port) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            asked = {name: _digest(place.environ[name]) for name in (*KEYS, *PASSED, *KEPT_BACK, "NATS_URL")}
            wires = ("chat", "responses", "messages")
            faulty = [f"faulty:{wire}:{fault}" for wire in wires for fault in (*FAULTS, *ON_THE_WAY)]
            program.stdin.write(json.dumps([list(asked.values()), faulty]).encode() + b"\n")
            said = []
            while (line := await program.stdout.readline()) != b"done\n":
                assert line, (place.folder / "errors").read_text()
                said.append(line)
            place.found["output"] = b"".join(said)
            await _everything_shown(place)
            if demo:
                await _output(place, "demo", "--model", "offline", "--out", str(place.folder / "report"))
            await _stored(place, client)
            ray = local.find(place.home)
            assert ray is not None
            await _ray_state(place, ray)
            _files(place, place.home, Path(ray.temp_dir))
            # The places where they are to be: the user's own, until the cluster is stopped.
            for file in (place.home / "model-keys.json", place.home / "secrets" / "dev-nats_url"):
                assert place.mark.encode() in place.found.pop(str(file))
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert not _open_to_others(place.home)
            _processes(place)
        await client.close()
    _files(place, place.home, place.folder / "nats" / "js")
    place.found["errors"] = (place.folder / "errors").read_bytes()
    place.found["log of the nats-server"] = (place.folder / "nats" / "nats.log").read_bytes()

    assert not place.leaks()
    # It was looked at the right places: something was struck out in each.
    struck = [name for name, data in place.found.items() if STRUCK.encode() in data]
    for part in (
        "output",
        "heard",
        "-dead ",
        "-lite ",
        "-runs ",
        "dlq list",
        "pty status",
        "status --json",
        "doctor --json",
        ".err",
        "controller_",
    ):
        assert any(part in name for name in struck), part
    looked_at = {name.split(" ")[0] for name in place.found}
    assert looked_at >= {f"squadron-dev-{stream}" for stream in ("dead", "events", "lite", "registry", "runs")}
    lines = [line for name in struck if name.endswith(".err") for line in place.found[name].splitlines()]
    assert any(b"task.ended" in line and STRUCK.encode() in line for line in lines)
    told = {each["name"]: each for each in json.loads(place.found["doctor --json"].splitlines()[-1])["checks"]}
    assert told["agents"]["level"] == "fail"
    assert "stillborn is DEPLOY_FAILED" in told["agents"]["found"]
    seen = next(json.loads(line[5:]) for line in said if line.startswith(b"seen "))
    assert set(seen) == {asked[name] for name in PASSED}
    reasons = re.findall(r"reason=(.*?), details", place.found["output"].decode())
    for wire in ("openai", "anthropic"):
        for sign in ("answered HTTP 401", "answered HTTP 429", "answered HTTP 502", "was silent", "at http"):
            assert any(f"{wire}:m {sign}" in reason for reason in reasons), (wire, sign, reasons)
    assert b"actors " in place.found["state of Ray"]
    assert not place.found["state of Ray"].endswith(b"entries 0\n")


def _digest(value: str) -> str:
    return hashlib.sha256(value.strip().encode()).hexdigest()


async def _everything_shown(place: Place) -> None:
    """Have the command line show all it knows, to programs and to people."""
    buried = re.search(rb"DeadLettered\(task_id='(\w+)'", place.found["output"])
    assert buried is not None
    await asyncio.gather(
        _output(place, "dlq", "list", "--json"),
        _output(place, "pty", "dlq", "list"),
        _output(place, "pty", "dlq", "show", buried[1].decode()),
        _output(place, "status", "--json"),
        _output(place, "doctor", "--json"),
        _output(place, "pty", "status"),
        _output(place, "pty", "ask", "leak.text"),
    )
