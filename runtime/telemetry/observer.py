"""Who hears what happens in a process: traces, metrics, the audit trail, logs, and what users add."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol

from squadron.runtime.errors import ConfigError
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of, traceback_of

if TYPE_CHECKING:
    from squadron.runtime.telemetry.happenings import Happening

_log = get_logger("squadron.observers")


class Observer(Protocol):
    """Hears what happens in this process. Nothing that it does or raises changes what becomes of a message."""

    def hear(self, happening: Happening) -> None:
        """Take in one happening: called in the event loop, where it happens, so it must not block.

        More kinds may come: pass over those that you don't know.
        """
        ...

    async def aclose(self) -> None:
        """The process leaves the bus; the last call."""
        ...


class Observers:
    """The observers of one process.

    Attributes:
        on: whether there is one: who finds nobody listening need not even say what happened.
    """

    def __init__(self) -> None:
        self._each: tuple[Observer, ...] = ()
        self._broken: set[Observer] = set()
        self.on = False

    def add(self, observer: Observer) -> None:
        """Have an observer hear what happens from now on."""
        if not callable(getattr(observer, "hear", None)) or not callable(getattr(observer, "aclose", None)):
            raise ConfigError(f"{observer!r} is no observer", hint="it needs `hear` and `async aclose`")
        self._each = (*self._each, observer)
        self.on = True

    def remove(self, observer: Observer) -> None:
        """Have it hear nothing more; one that was never added is fine."""
        self._each = tuple(each for each in self._each if each is not observer)
        self.on = bool(self._each)

    def tell(self, happening: Happening) -> None:
        """Tell all of them; never raises."""
        for observer in self._each:
            try:
                observer.hear(happening)
            except Exception as error:
                # It breaks each time, and thousands of times a second.
                if observer not in self._broken:
                    self._broken.add(observer)
                    _log.error("observer.broke", observer=repr(observer), traceback=traceback_of(error))

    async def aclose(self) -> None:
        """Say goodbye to all of them. May be called twice."""
        each, self._each, self.on = self._each, (), False
        async with contextlib.AsyncExitStack() as rest:
            for observer in each:
                rest.push_async_callback(self._part, observer)

    async def _part(self, observer: Observer) -> None:
        try:
            await observer.aclose()
        except Exception as error:
            _log.error("observer.broke", observer=repr(observer), traceback=traceback_of(error))


def load_observer(path: str) -> Observer:
    """The observer that `package.module:name` makes: a class or function, called with nothing.

    Raises:
        ConfigError: there is none there, or it can't be made.
    """
    try:
        make: Callable[[], Observer] = resolve_name(path)
        return make()
    except Exception as error:
        hint = "name them like my_package.my_module:MyObserver, by commas"
        raise ConfigError(f"observers: {path!r} can't be made: {summary_of(error)}", hint=hint) from error
