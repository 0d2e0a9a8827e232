"""One namespaced package over the top-level folders: sdist and wheel hold all of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"runtime": "squadron/", "actors": "squadron/", "bridge": "squadron/", "squadron": ""}
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "tests"
)


@pytest.mark.timeout(300)
def test_sdist_and_wheel_hold_the_whole_package_and_the_wheel_imports_alone(tmp_path):
    tree, out, site = tmp_path / "tree", tmp_path / "out", tmp_path / "site"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(tree)], check=True, capture_output=True
    )
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        f"{prefix}{path.relative_to(ROOT)}"
        for folder, prefix in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    assert modules <= names
    assert {"squadron/py.typed", "squadron/bridge/metrics/alerts.yml"} <= names
    page = [path for path in (ROOT / "squadron/console/static").rglob("*") if path.is_file()]
    assert page
    assert {str(path.relative_to(ROOT)) for path in page} <= names
    assert {name.split("/")[0] for name in names if not name.endswith("/")} == {
        "squadron",
        "squadron_ray-0.1.0.dist-info",
    }
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/runtime/running/turn.py") for name in archive.getnames())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    code = "import squadron, squadron.bridge.serve.replica, squadron.cli.app; print(squadron.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(site / "squadron" / "__init__.py"), done.stderr
