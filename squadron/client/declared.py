"""A squad as a file says it is to be: read, held against what runs, and made so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from squadron.actors.agent import Agent, AgentSpec, specs_of
from squadron.runtime.errors import ConfigError
from squadron.runtime.wire.deployment import Deployment, Resources, RuntimeEnv, Scale

#: What a file may say otherwise than the class, besides its scale.
_CHOSEN = ("slots", "grace_s", "num_cpus", "num_gpus", "resources", "runtime_env", "group")
#: What to look at of a deployment; what else is in it follows from these.
_SHOWN = (*_CHOSEN, "bounds", "scale")
_HINT = "see docs/operations.md#a-squad-in-a-file"


class DeclaredAgent(BaseModel):
    """One agent of the file: its class, and what is to be otherwise than the class says."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    path: str = Field(alias="class")
    scale: str = ""
    slots: int | None = Field(default=None, ge=1)
    grace_s: float | None = Field(default=None, ge=0)
    num_cpus: float | None = Field(default=None, ge=0)
    num_gpus: float | None = Field(default=None, ge=0)
    #: Share in percent with which new code is tried beside what runs; without, it replaces that.
    canary: int | None = Field(default=None, ge=0, le=100)

    @field_validator("canary", mode="before")
    @classmethod
    def _percent(cls, canary: Any) -> Any:
        return canary.strip().removesuffix("%").strip() if isinstance(canary, str) else canary

    resources: Resources | None = None
    runtime_env: RuntimeEnv | None = None
    group: str | None = None

    @field_validator("scale", mode="before")
    @classmethod
    def _scale_as_text(cls, scale: Any) -> Any:
        # YAML reads a number.
        return str(scale) if type(scale) is int else scale

    @field_validator("scale")
    @classmethod
    def _is_scale(cls, scale: str) -> str:
        if scale:
            try:
                Scale.parse(scale, Scale(minimum=0, maximum=1))
            except ConfigError as error:
                raise ValueError(f"{error.args[0]}; {error.hint}") from None
        return scale

    def applied(self, deployment: Deployment) -> Deployment:
        """A deployment of its class as the file wants it."""
        chosen = {name: getattr(self, name) for name in _CHOSEN}
        changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if self.scale:
            scale = Scale.parse(self.scale, deployment.bounds)
            changes |= {"scale": scale} if scale.pinned else {"scale": scale, "bounds": scale}
        return deployment.model_copy(update=changes)


class DeclaredSquad(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str = ""
    agents: tuple[DeclaredAgent, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        paths = [each.path for each in self.agents]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))} stands there twice")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of YAML, or JSON.

        Raises:
            ConfigError: it can't be read, or something in it is not known; says where.
        """
        try:
            raw = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}", hint=_HINT) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"{path} is no YAML: {said[:300]}", hint=_HINT) from None
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"{path}: {where}: {first['msg']}", hint=_HINT) from None

    def specs(self, load: Any) -> dict[str, tuple[AgentSpec, DeclaredAgent]]:
        """The agents by name; `load` imports one by its path.

        Raises:
            InvalidAgentError: one can't be imported or served, or two have one name.
        """
        classes: list[type[Agent]] = [load(each.path) for each in self.agents]
        found = specs_of(classes)
        by_class = {spec.agent_class: spec for spec in found.values()}
        return {by_class[cls].name: (by_class[cls], each) for cls, each in zip(classes, self.agents, strict=True)}


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one agent.

    Attributes:
        fields: what changes, with how it is and how it is to be; `code` by its version.
    """

    agent: str
    what: Literal["add", "change", "remove", "keep"]
    fields: Mapping[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        fields = {name: {"from": old, "to": new} for name, (old, new) in self.fields.items()}
        return {"agent": self.agent, "what": self.what, "fields": fields}

    def __str__(self) -> str:
        sign = {"add": "+", "change": "~", "remove": "-", "keep": " "}[self.what]
        said = ", ".join(
            f"{name} {old} → {new or 'none'}" if old else f"{name} {new}"
            for name, (old, new) in self.fields.items()
        )
        return f"{sign} {self.agent}{f': {said}' if said else ''}"


def changes_of(
    wanted: Mapping[str, Deployment],
    running: Mapping[str, Deployment],
    *,
    scaled: Sequence[str] = (),
    prune: bool = False,
) -> list[Change]:
    """How what runs differs from what is wanted, by name.

    Args:
        scaled: agents whose scale the file names: that of others may be set by hand.
        prune: what is not wanted is to go.
    """
    found = []
    for name, new in sorted(wanted.items()):
        old = running.get(name)
        if old is None:
            shown = {"scale": ("", str(new.scale)), "slots": ("", str(new.slots))}
            found.append(Change(name, "add", shown))
            continue
        fields = {
            field: (str(getattr(old, field)), str(getattr(new, field)))
            for field in _SHOWN
            if getattr(old, field) != getattr(new, field) and (field != "scale" or name in scaled)
        }
        if _canary(old) != _canary(new):
            fields["canary"] = (_in_short(old.canary), _in_short(new.canary))
        if old.code["version"] != new.code["version"]:
            fields["code"] = (old.code["version"][:8], new.code["version"][:8])
        if _told(old) != _told(new):
            fields["topics"] = ("as before", "changed")
        found.append(Change(name, "change" if fields else "keep", fields))
    if prune:
        found += [Change(name, "remove", {}) for name in sorted(running.keys() - wanted.keys())]
    return found


def beside(running: Deployment, wanted: Deployment, weight: int) -> Deployment:
    """What runs with what is wanted as its canary; what is wanted, if that is the code that runs already."""
    if wanted.code["version"] == running.code["version"]:
        return wanted
    return running.model_copy(
        update={"canary": wanted.model_copy(update={"weight": weight, "group": running.group})}
    )


def _canary(deployment: Deployment) -> tuple[Any, ...] | None:
    """What is looked at of its canary: code and share first."""
    if (canary := deployment.canary) is None:
        return None
    return (canary.code["version"], canary.weight, *(getattr(canary, field) for field in _SHOWN))


def _in_short(canary: Deployment | None) -> str:
    return "" if canary is None else f"{canary.code['version'][:8]} {canary.weight} %"


def _told(deployment: Deployment) -> Any:
    """What its card says, but for the key, which the bridge adds."""
    return deployment.card.with_key("")
