"""What the parts of `Context` share."""

from __future__ import annotations

from squadron.runtime.asking.caller import Caller
from squadron.runtime.trust.sealing import SealKey
from squadron.runtime.wire.envelope import AgentMessage


class InTurn:
    """One turn: the task it is about, and for whom what it says is sealed."""

    message: AgentMessage
    #: For whom what it says is sealed; nobody, if the task was not sealed.
    _readers: tuple[SealKey, ...] = ()
    _caller: Caller

    def _check_loop(self) -> None: ...

    @property
    def is_sealed(self) -> bool:
        """Whether nobody but this agent and its asker is to read what the task is about."""
        return bool(self._readers)
