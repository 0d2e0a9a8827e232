"""Machines of one's own on this one: each has processes, a network, a home and an sshd, by namespaces of Linux."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

#: What it takes: root, and the tools that on-premises machines have.
TOOLS = ("unshare", "nsenter", "ip", "sshd", "ssh-keygen", "rsync")
PREFIX = "10.77.0"
#: A machine that has no sshd by then, in seconds, never will.
UP_WITHIN_S = 20.0
#: Run as the machine's first process: its files, and then sshd. What Ray puts into /tmp/ray is the machine's own.
_INIT = """
set -e
case "$4" in /root/*)  # the Python of the tests stays where it is, whoever's home is there now
  mkdir -p "$0/home/${4#/root/}" && mount --bind "$4" "$0/home/${4#/root/}" ;;
esac
mount --rbind "$0/home" /root
mkdir -p /tmp/ray /run/sshd && mount -t tmpfs none /tmp/ray && mount -t tmpfs none /run
mkdir -p /run/sshd
hostname "$1"
ip link set lo up
while ! ip link show dev m0 > /dev/null 2>&1; do sleep 0.05; done
ip addr add "$2/24" dev m0 && ip link set m0 up
ip route add default via "${2%.*}.1"  # Ray finds its own address by the way out
exec "$3" -D -e -f /dev/null -h "$0/host_key" -p 22 \\
  -o PermitRootLogin=yes -o AuthorizedKeysFile="$0/authorized" -o StrictModes=no -o UsePAM=no -o PidFile=none
"""


#: Ray starts its workers behind all else; on a machine that is busy they would never come up.
_PROFILE = """
export PATH="$HOME/bin:$PATH" RAY_worker_niceness=0
[ ! -f ~/.bashrc ] || . ~/.bashrc
"""


def are_possible() -> bool:
    """Whether there can be machines here."""
    return os.geteuid() == 0 and all(_tool(name) for name in TOOLS)


def _env() -> dict[str, str]:
    """What there is on a machine: nothing of a Ray of other tests, whose token it would be."""
    return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root"}


def _tool(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


def _run(*words: str | Path) -> None:
    subprocess.run([_tool(str(words[0])), *map(str, words[1:])], check=True, capture_output=True, timeout=20)


class Machines:
    """Some machines on a network of their own, of which the test's process is a part."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._bridge = folder, f"sq{os.getpid() % 100000}"
        self._first = dict[str, subprocess.Popen[bytes]]()
        self.addresses = [f"{PREFIX}.{number + 2}" for number in range(count)]
        self.key = folder / "key"

    def __enter__(self) -> Self:
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        try:
            _run("ip", "addr", "add", f"{PREFIX}.1/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            for number, address in enumerate(self.addresses):
                self._start(number, address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, number: int, address: str) -> None:
        place, name = self._folder / f"machine-{number}", f"machine-{number}"
        (place / "home" / "bin").mkdir(parents=True)
        (place / "home" / ".profile").write_text(_PROFILE)
        # Its user may do all.
        sudo = place / "home" / "bin" / "sudo"
        sudo.write_text('#!/bin/sh\necho "$@" >> ~/sudo.log\n')
        sudo.chmod(0o755)
        shutil.copy(self.key.with_suffix(".pub"), place / "authorized")
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "host_key")
        log = (place / "sshd.log").open("ab")
        command = [_tool("unshare"), "-pfmnu", "--mount-proc", "--kill-child", "bash", "-c", _INIT]
        self._first[address] = first = subprocess.Popen(
            [*command, str(place), name, address, _tool("sshd"), sys.base_prefix],
            stdout=log,
            stderr=log,
            env=_env(),
        )
        inner = self._inner(first)
        _run("ip", "link", "add", f"{self._bridge}v{number}", "type", "veth", "peer", "name", "m0", "netns", inner)
        _run("ip", "link", "set", f"{self._bridge}v{number}", "master", self._bridge, "up")
        give_up_at = time.monotonic() + UP_WITHIN_S
        while b"Server listening" not in (place / "sshd.log").read_bytes():
            assert first.poll() is None, (place / "sshd.log").read_text()
            assert time.monotonic() < give_up_at, (place / "sshd.log").read_text()
            time.sleep(0.05)

    @staticmethod
    def _inner(first: subprocess.Popen[bytes]) -> str:
        """The first process of the machine, as it is called out here."""
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        give_up_at = time.monotonic() + UP_WITHIN_S
        while not (found := children.read_text().split()):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        return found[0]

    def home(self, number: int) -> Path:
        """The home folder of a machine's user."""
        return self._folder / f"machine-{number}" / "home"

    def run(self, number: int, script: str) -> str:
        """What a script prints on a machine, run by its user's login shell."""
        inner = self._inner(self._first[self.addresses[number]])
        command = [_tool("nsenter"), "-t", inner, "-p", "-m", "-n", "-u", "bash", "--login", "-c", script]
        done = subprocess.run(
            command, env=_env(), capture_output=True, text=True, timeout=180, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def __exit__(self, *_: Any) -> None:
        for first in self._first.values():
            # With the first process of a machine all others end.
            first.send_signal(signal.SIGKILL)
            first.wait()
        _run("ip", "link", "del", self._bridge)
