"""What an MCP host is told to reach a gateway, in the `mcpServers` shape that most of them read."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import Any

from squadron.config import Settings
from squadron.runtime.secret import ENV


def host_config(settings: Settings, *, stdio: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, to be printed; a token stands in it as the variable that it is kept in.

    Args:
        options: those of the command line: `host`, `port`, `public_url`, `agents`, `topics`, `tokens`.
    """
    name = "squadron" if settings.env == "dev" else f"squadron-{settings.env}"
    if stdio:
        wanted = [each for agent in options["agents"] for each in ("--agent", agent)]
        wanted += [each for topic in options["topics"] for each in ("--topic", topic)]
        # Hosts start it from a folder, and with a PATH, of their own.
        command = shutil.which("squadron") or sys.argv[0]
        env = {"SQUADRON_HOME": str(settings.home), "SQUADRON_ENV": settings.env}
        server: dict[str, Any] = {"command": command, "args": ["gateway", "--stdio", *wanted], "env": env}
        return {"mcpServers": {name: server}}
    url = options["public_url"] or f"http://{options['host']}:{options['port']}"
    server = {"type": "http", "url": f"{url}/mcp"}
    if options["tokens"]:
        place = options["tokens"][0].partition("=")[2]
        variable = place.removeprefix(ENV) if place.startswith(ENV) else "SQUADRON_TOKEN"
        server["headers"] = {"Authorization": f"Bearer ${{{variable}}}"}
    return {"mcpServers": {name: server}}
