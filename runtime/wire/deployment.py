"""What the bridge is told to run, and how many of it."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from squadron.runtime.errors import ConfigError, InvalidAgentError, InvalidSubjectError
from squadron.runtime.wire.canary_share import CanaryShare
from squadron.runtime.wire.subjects import check_token
from squadron.runtime.wire.topics import AgentCard

#: Before the name of a group, and of an agent for its canary, where agents stand as well; theirs have no dot.
_GROUP, CANARY = "group.", "canary."


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


class RuntimeEnv(BaseModel):
    """What the processes of one agent have that others don't, as far as Ray makes it at their start.

    Attributes:
        pip: requirements, as pip takes them; Ray installs them on each node where a replica starts.
        env_vars: environment variables. They are recorded, so they hold no secrets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pip: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    env_vars: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pip or self.env_vars)

    def to_ray(self) -> dict[str, Any]:
        """As Ray takes it."""
        return {name: part for name, part in self.model_dump(mode="json").items() if part}


#: Those of Ray's resources that have options of their own, or none here.
_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")


def _is_custom(name: str) -> str:
    if not name or name in _OWN_RESOURCES:
        raise ValueError("a custom resource has a name of its own; CPUs and GPUs are num_cpus and num_gpus")
    return name


#: Custom resources of Ray by name, and how much of each a replica reserves.
Resources = dict[Annotated[str, AfterValidator(_is_custom)], Annotated[float, Field(gt=0, allow_inf_nan=False)]]


def this_python() -> str:
    """The Python of this process, as far as compiled code is concerned."""
    return "{}.{}".format(*sys.version_info)


class Deployment(BaseModel):
    """One agent type as it is to run: the bridge's durable record of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    card: AgentCard
    #: Import path or blob digest, as `bridge.packing.code.Code.to_dict` gives it.
    code: dict[str, str]
    #: Its class as people name it, `module:Class`; code that travels by value does not say.
    class_path: str = ""
    slots: int = Field(ge=1)
    grace_s: float = Field(ge=0)
    num_cpus: float = Field(default=0, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: Resources = Field(default_factory=dict)
    runtime_env: RuntimeEnv = RuntimeEnv()
    #: Agents of one group share processes; one without has processes of its own.
    group: str = ""
    ordered_by: Literal["", "conversation"] = ""
    bounds: Scale
    scale: Scale
    #: Raised to have all replicas started anew though nothing else changed.
    generation: int = Field(default=0, ge=0)
    #: Another version that runs beside this one, and takes a share of its tasks.
    canary: Deployment | None = None
    #: Of a canary its share, in percent of the tasks; None of what is no canary.
    weight: int | None = Field(default=None, ge=0, le=100)

    @field_validator("code")
    @classmethod
    def _has_version(cls, code: dict[str, str]) -> dict[str, str]:
        if "version" not in code:
            raise ValueError("no version")
        return code

    @model_validator(mode="after")
    def _beside_one(self) -> Self:
        other = self.canary
        if other is not None and (other.weight is None or other.canary is not None or other.agent != self.agent):
            raise ValueError("a canary is of the same agent, has a weight, and no canary of its own")
        return self

    @property
    def agent(self) -> str:
        return self.card.agent

    @property
    def application(self) -> str:
        """Name of what it runs in, within the environment: its own, or its group's. A canary is in no group."""
        return f"{_GROUP}{self.group}" if self.group and self.weight is None else self.known_as

    @property
    def known_as(self) -> str:
        """Name by which it is told apart from all other agents, and from the other version of its own."""
        return self.agent if self.weight is None else f"{CANARY}{self.agent}"

    @property
    def needs(self) -> dict[str, float]:
        """What Ray reserves for each replica, by Ray's names."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: each for name, each in named.items() if each}

    def check_group(self) -> None:
        """Check that it can share a process, if it is to.

        Raises:
            InvalidAgentError: its group's name breaks the grammar, or it wants what only a process of its own has.
        """
        if not self.group:
            return
        try:
            check_token(self.group, f"group of {self.agent}:")
        except InvalidSubjectError as error:
            raise InvalidAgentError(str(error), field="group") from None
        for own in ("num_cpus", "num_gpus", "resources", "runtime_env"):
            if getattr(self, own):
                raise InvalidAgentError(
                    f"{self.agent} has {own} of its own, and shares a process in group {self.group!r}",
                    field=own,
                    hint=f"take it out of the group, or take its {own} away",
                )

    @property
    def is_promoted(self) -> bool:
        """Whether its canary's code is to serve: the canary runs until that runs in the place of what served."""
        return self.canary is not None and self.canary.code["version"] == self.code["version"]

    @property
    def versions(self) -> tuple[Deployment, ...]:
        """What runs of it: itself, and its canary if it has one."""
        return (self,) if self.canary is None else (self, self.canary)

    @property
    def running_scale(self) -> Scale:
        """By what replicas are run. A canary never sleeps: whoever sees none of its replicas runs its tasks."""
        if self.weight is None or self.scale.minimum:
            return self.scale
        return self.scale.model_copy(update={"minimum": 1, "maximum": max(1, self.scale.maximum)})

    @property
    def share(self) -> CanaryShare | None:
        """What the card says of its canary."""
        if (canary := self.canary) is None or canary.weight is None:
            return None
        return CanaryShare(version=canary.code["version"], weight=canary.weight)

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
    #: The scale that somebody gave it at the cluster's own door.
    set_by_hand: Scale | None = None
