"""What can be closed is left with `async with` or `with`, too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class AsyncClosing(ABC):
    """`async with`, for what has an `aclose`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop. May be called twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Closing(ABC):
    """`with`, for what has a `close`."""

    @abstractmethod
    def close(self) -> None:
        """Stop. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
