"""Servers of other protocols for plain scripts: the same calls without `await`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from squadron.runtime.closing import Closing

if TYPE_CHECKING:
    from squadron.client.remote_servers import RemoteServer
    from squadron.client.squad import Squad

T = TypeVar("T")


class SyncRemoteServers(Closing):
    """See `RemoteServers`; every call blocks until it is done."""

    _squad: Squad

    @abstractmethod
    def _wait(self, work: Coroutine[Any, Any, T]) -> T: ...

    def mcp(self, name: str, **options: Any) -> list[str]:
        """See `Squad.mcp`."""
        return self._wait(self._squad.mcp(name, **options))

    def a2a(self, url: str, **options: Any) -> list[str]:
        """See `Squad.a2a`."""
        return self._wait(self._squad.a2a(url, **options))

    def remote_servers(self) -> list[RemoteServer]:
        """See `Squad.remote_servers`."""
        return self._wait(self._squad.remote_servers())

    def remote_server(self, agent: str) -> RemoteServer:
        """See `Squad.remote_server`."""
        return self._wait(self._squad.remote_server(agent))

    def synadia(self, name: str = "synadia", **options: Any) -> list[str]:
        """See `Squad.synadia`."""
        return self._wait(self._squad.synadia(name, **options))
