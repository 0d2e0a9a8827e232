"""Opening a squad, the asynchronous way and the plain one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squadron.client.blocking import SyncSquad
    from squadron.client.squad import Squad


class Opening:
    """A squad about to open: `await` it, or use it in `async with` or, in a plain script, in `with`.

    Where no block can be around all that follows, as in a notebook, `await` and `blocking` open it until it is
    closed.
    """

    def __init__(self, open_squad: Callable[[], Coroutine[Any, Any, Squad]]) -> None:
        self._open = open_squad
        self._squad: Squad | None = None
        self._sync: SyncSquad | None = None

    def __await__(self) -> Any:
        return self._open().__await__()

    async def __aenter__(self) -> Squad:
        self._squad = await self._open()
        return self._squad

    async def __aexit__(self, *_: object) -> None:
        if self._squad is not None:
            await self._squad.aclose()

    def blocking(self) -> SyncSquad:
        """Open it for calls that block, until its `close` or the end of the process.

        Raises:
            BlockingCallError: an event loop runs in this thread, and it is not that of a notebook.
        """
        return self.__enter__()

    def __enter__(self) -> SyncSquad:
        # Half of what a squad loads; programs that await need none of it.
        from squadron.client.blocking import SyncSquad

        # Known before it opens: it is closed however that ends.
        self._sync = SyncSquad()
        self._sync.start(self._open)
        return self._sync

    def __exit__(self, *_: object) -> None:
        if self._sync is not None:
            self._sync.close()
