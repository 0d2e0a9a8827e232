"""What can be wrong with a test."""

from __future__ import annotations

from squadron.runtime.errors import SquadronError


class NoTurnedLoopError(SquadronError):
    """Time is to be turned on an event loop that can't."""


class NotServedError(SquadronError):
    """An agent is to be killed or taken away that does not run here."""


class ScriptError(SquadronError):
    """A script has a reply that can't be given, or was asked for more than it has."""
