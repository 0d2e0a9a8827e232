"""A secret does not travel with the code of an agent (L4): who would deploy one is told where it is."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_PACK = """
import os, sys
{before}
from squadron.bridge.packing.code import pack
from squadron.runtime.errors import InvalidAgentError
from agents import Mine
try:
    code, blob = pack(Mine)
except InvalidAgentError as error:
    print("refused:", error, "|", error.hint)
else:
    print("travels", len(blob))
"""
_AGENT = """
from squadron import Agent, Secret, topic
import os
{top}
class Mine(Agent):
    {attribute}
    @topic("mine.ask")
    async def ask(self, name: str{parameter}) -> str:
        return {used}
"""
PLANTED = f"planted{secrets.token_hex(8)}"


def _pack(folder: Path, agent: str, before: str = "", **files: str) -> str:
    (folder / "agents.py").write_text(agent)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    program = _PACK.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert PLANTED not in done.stdout + done.stderr
    return done.stdout


def _agent(top: str = "", attribute: str = "pass", parameter: str = "", used: str = "name") -> str:
    return _AGENT.format(top=top, attribute=attribute, parameter=parameter, used=used)


@pytest.mark.parametrize(
    ("agent", "where"),
    [
        (_agent(f'API_KEY = "{PLANTED}"', used="API_KEY"), "API_KEY"),
        (_agent(f'DB = {{"host": "h", "login": [{{"db_password": "{PLANTED}"}}]}}', used="DB"), "db_password"),
        (_agent(attribute=f'access_token = "{PLANTED}"'), "access_token"),
        (_agent(parameter=f', *, api_key: str = "{PLANTED}"'), "api_key"),
        (_agent(f'import pydantic\nHELD = pydantic.SecretStr("{PLANTED}")', used="HELD"), "HELD"),
        (_agent(f'HELD = Secret("{PLANTED}")', used="HELD"), "HELD"),
        (_agent(f'class Login:\n    pass\nME = Login()\nME.api_key = "{PLANTED}"', used="ME"), "api_key"),
        (_agent(used=f'"sk-proj-{PLANTED}"'), "key of an LLM provider"),
        (_agent(used=f'"postgres://eve:{PLANTED}@db/main"'), "address with a password"),
        (_agent(used=f'"-----BEGIN PRIVATE KEY-----\\n{PLANTED}{PLANTED}"'), "private key"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_a_class_that_holds_a_secret_is_refused_with_its_name(tmp_path: Path, agent: str, where: str) -> None:
    told = _pack(tmp_path, agent)

    assert told.startswith("refused: Mine can't travel to the cluster: ")
    assert where in told
    assert "look it up where it runs" in told


def test_what_is_a_secret_in_the_shell_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    before = f'os.environ["SOMETHING_TOKEN"] = "{PLANTED}"'
    told = _pack(tmp_path, _agent('HELD = ["x", os.environ["SOMETHING_TOKEN"]]', used="HELD"), before)

    assert "'HELD' of agents" in told
    assert "what is a secret in the environment" in told


@pytest.mark.parametrize("used", ["helper.run()", "str(helper)"], ids=["used", "unused"])
def test_modules_that_come_along_are_looked_at_as_well(tmp_path: Path, used: str) -> None:
    helper = f"""
        PASSWORD = "{PLANTED}"
        def run():
            return PASSWORD
    """
    agent = _agent("import helper", used=used)
    assert "PASSWORD" in _pack(tmp_path, agent, helper=helper)


def test_a_module_that_is_imported_when_it_runs_is_refused_too(tmp_path: Path) -> None:
    agent = _agent().replace("return name", "import helper\n        return helper.PASSWORD")
    told = _pack(tmp_path, agent, helper=f'PASSWORD = "{PLANTED}"')

    assert told.startswith("refused: ")
    assert "PASSWORD" in told


def test_what_only_looks_so_travels(tmp_path: Path) -> None:
    top = """
    EOS_TOKEN = "<|endoftext|>"
    STOP_TOKEN = "TERMINATE"
    API_KEY = "OPENAI_API_KEY"
    OTHER_KEY, API_TOKEN = "sort", ""
    PASSWORD = "Please type your password"
    HELD = Secret("file:/run/secrets/x")
    SECRET = "env:MY_SECRET"
    URL = "nats://user:password@host:4222 or nats://{user}:{secret_of_him}@host"
    KINDS = "sk-learn and sk-something-that-is-long-enough"
    """
    names = "EOS_TOKEN, STOP_TOKEN, API_KEY, OTHER_KEY, API_TOKEN, PASSWORD, HELD, SECRET, URL, KINDS"
    used = f"[{names}, os.environ.get('MY_API_KEY', 'none-at-all-1')]"
    assert _pack(tmp_path, _agent(textwrap.dedent(top), used=used)).startswith("travels")
