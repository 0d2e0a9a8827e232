"""Which tasks of an agent are for its canary: told by its card, and the same wherever it is asked."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field

from squadron.runtime.errors import InvalidShareError

#: Parts that tasks are told apart by: a percent is so many hundredths of them.
_PARTS = 10_000


def check_share(percent: object, field: str = "weight") -> int:
    """A share of tasks, checked.

    Raises:
        InvalidShareError: it is no whole percent.
    """
    if type(percent) is not int or not 0 <= percent <= 100:
        hint = "a whole percent from 0 to 100: 10, for example"
        raise InvalidShareError(f"{percent!r} is no share of tasks", field=field, hint=hint)
    return percent


class CanaryShare(BaseModel):
    """Another version of an agent's code that runs beside the one that serves, and its share of the tasks."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: Digest of its code.
    version: str
    #: Its share, in percent of conversations; a task without one counts for itself.
    weight: int = Field(ge=0, le=100)

    def takes(self, conversation: str) -> bool:
        """Whether the tasks of a conversation, or the one task with this id, are for the canary.

        Nothing is kept of it: it follows from the id, so that it is the same in every process and after any death.
        With a higher weight those that were for it stay so. Another version is tried on other conversations.
        """
        said = f"{self.version} {conversation}".encode("utf-8", "surrogatepass")
        part = int.from_bytes(hashlib.sha256(said).digest()[:8]) % _PARTS
        return part * 100 < self.weight * _PARTS
