"""A real Prometheus and promtool: those of Debian, unpacked and not installed, so that no service starts."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from platformdirs import user_cache_dir

#: Where they are kept for the next time.
CACHE = Path(user_cache_dir("squadron-tests")) / "prometheus"


@cache
def prometheus() -> tuple[Path, Path]:
    """Paths of `prometheus` and `promtool`: those that are installed, else of Debian's package.

    Raises:
        OSError: they are neither here nor to be had; says why.
    """
    installed = shutil.which("prometheus"), shutil.which("promtool")
    if all(installed):
        return Path(installed[0] or ""), Path(installed[1] or "")
    kept = CACHE / "usr/bin/prometheus", CACHE / "usr/bin/promtool"
    if not all(path.exists() for path in kept):
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise OSError("there is no prometheus here, and no apt-get to fetch Debian's with")
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
            done = subprocess.run(
                ["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, text=True, timeout=120
            )
            packages = [*Path(folder).glob("prometheus_*.deb")]
            if done.returncode or not packages:
                raise OSError(f"prometheus can't be downloaded from Debian: {done.stderr.strip()[-200:]}")
            unpacked = Path(folder) / "unpacked"
            subprocess.run(["dpkg", "-x", str(packages[0]), str(unpacked)], check=True, timeout=120)
            shutil.rmtree(CACHE, ignore_errors=True)
            os.replace(unpacked, CACHE)
    return kept


def promtool(*arguments: str, stdin: str = "") -> str:
    """Run promtool; returns all that it says, and fails with that if it is not content."""
    done = subprocess.run(
        [str(prometheus()[1]), *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@contextmanager
def server(folder: Path, targets: str = "") -> Iterator[str]:
    """A running Prometheus with its data in a folder; yields its address.

    Args:
        targets: files of `file_sd_configs` with what it scrapes, each second.
    """
    job = {"job_name": "squadron", "file_sd_configs": [{"files": [targets]}]} if targets else None
    # JSON is YAML.
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job] if job else []}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    promtool("check", "config", str(folder / "prometheus.yml"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(prometheus()[0]), *files, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    try:
        while not _is_ready(address):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def call(address: str, method: str, **arguments: str) -> Any:
    """The `data` that a call of its API answers; fails with what it says of a bad one."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/{method}?{urlencode(arguments)}") as answer:
            return json.loads(answer.read())["data"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{arguments}: {error.read().decode()}") from None


def query(address: str, promql: str) -> dict[tuple[str, ...], float]:
    """What a query gives now, by the values of the labels (sorted by their names, without those of the scrape)."""
    added = {"__name__", "instance", "job", "environment"}
    return {
        tuple(value for name, value in sorted(each["metric"].items()) if name not in added): float(
            each["value"][1]
        )
        for each in call(address, "query", query=promql)["result"]
    }


def metrics_in(promql: str) -> set[str]:
    """Words of a query that may be names of metrics."""
    return set(re.findall(r"[a-zA-Z_]\w*", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", promql)))


def plain(name: str, *, of_ray: bool) -> str:
    """The metric that a series belongs to."""
    if of_ray:
        name = re.sub(r"(_sum|_count)_total$", r"\1", name.removeprefix("ray_"))
    return re.sub(r"_(bucket|sum|count)$", "", name)


def why_not() -> str:
    """Why there is no Prometheus; empty if there is one."""
    try:
        prometheus()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def needed(test: Any) -> Any:
    """Mark a test that needs Prometheus: skipped, with the reason, where it is not to be had."""

    @functools.wraps(test)
    def judged(*arguments: Any, **named: Any) -> Any:
        if why := why_not():
            pytest.skip(why)
        return test(*arguments, **named)

    return judged
