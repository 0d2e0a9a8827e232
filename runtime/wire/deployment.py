"""What the bridge is told to run, and how many of it."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.topics import AgentCard


class Scale(BaseModel):
    """Bounds on the number of replicas; `pinned` takes it out of the autoscaler's hands."""

    model_config = ConfigDict(frozen=True)

    minimum: int = Field(ge=0)
    maximum: int = Field(ge=0)
    pinned: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def __str__(self) -> str:
        return str(self.minimum) if self.pinned else f"{self.minimum}..{self.maximum}"

    @classmethod
    def parse(cls, text: str, default: Scale) -> Scale:
        """Read `N`, `MIN..MAX`, or `auto` (the agent's own bounds).

        Raises:
            ConfigError: none of these.
        """
        if text == "auto":
            return default
        if re.fullmatch(r"\d+", text):
            return cls(minimum=int(text), maximum=int(text), pinned=True)
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", text)
        if bounds and int(bounds[1]) <= int(bounds[2]) and int(bounds[2]) > 0:
            return cls(minimum=int(bounds[1]), maximum=int(bounds[2]))
        raise ConfigError(f"{text!r} is not a scale", hint="use N, MIN..MAX (MIN not above MAX), or auto")


class Deployment(BaseModel):
    """One agent type as it is to run: the bridge's durable record of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    card: AgentCard
    #: Import path or blob digest, as `bridge.packing.code.Code.to_dict` gives it.
    code: dict[str, str]
    slots: int = Field(ge=1)
    grace_s: float = Field(ge=0)
    num_cpus: float = Field(default=0, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    ordered_by: Literal["", "conversation"] = ""
    bounds: Scale
    scale: Scale
    #: Raised to have all replicas started anew though nothing else changed.
    generation: int = Field(default=0, ge=0)

    @field_validator("code")
    @classmethod
    def _has_version(cls, code: dict[str, str]) -> dict[str, str]:
        if "version" not in code:
            raise ValueError("no version")
        return code

    @property
    def agent(self) -> str:
        return self.card.agent

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(topic.name for topic in self.card.topics)


class AgentState(BaseModel):
    """How an agent type is doing, as the cluster sees it.

    `status` is Ray Serve's word: RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY, DELETING…
    """

    model_config = ConfigDict(frozen=True)

    status: str
    message: str = ""
    running: int = 0
    target: int = 0
    #: Whether the cluster was told to run it otherwise than is wanted.
    drifted: bool = False
