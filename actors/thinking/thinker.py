"""Agents that think: they may be given the model to think with."""

from __future__ import annotations

from squadron.actors.agent import Agent
from squadron.actors.thinking.model import Model


class Thinker(Agent):
    """Base of agents that ask a model.

    Attributes:
        given_model: what it thinks with, whatever a task names; None asks `make_model`. Tests give it, with
            `MemorySquad.deploy(…, model=…)`.
    """

    given_model: Model | None = None
