"""Which tasks of a mailbox are for the canary: the replicas of the version that serves bring them to its own."""

from __future__ import annotations

from squadron.runtime.registry.registry import Registry
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.route import Route


class Split:
    """How the tasks of one agent are split between the version that serves and its canary.

    Both have one mailbox. Only replicas of the version that serves take from it, and they hand the canary its
    share: so nothing is lost, or waits where nobody looks, when a canary comes, goes or dies.
    """

    def __init__(self, agent: str, registry: Registry, *, version: str = "", canary: bool = False) -> None:
        """Make one, for a replica of either version; outcomes say which by `version`."""
        self._agent, self._registry, self.is_canary = agent, registry, canary
        self.version = version

    def is_on(self) -> bool:
        """Whether two versions are beside each other now."""
        card = self._registry.card(self._agent)
        return card is not None and card.canary is not None

    def elsewhere(self, message: AgentMessage) -> list[str]:
        """The canary's replicas, if this task is for one of them, and we are none.

        While it has no replica that lives and may run the task, the version that serves does so.
        """
        if self.is_canary or (card := self._registry.card(self._agent)) is None or card.canary is None:
            return []
        if not card.canary.takes(message.context.conversation_id or message.id):
            return []
        route = Route.of(message)
        if route is not None and route.target not in ("", self._agent):
            # For one replica, who made a bid, say.
            return []
        return [
            name
            for name, them in self._registry.replicas(self._agent).items()
            if them.canary and (route is None or not route.misfit(self._agent, name, them.capabilities))
        ]
