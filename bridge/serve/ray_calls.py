"""For code on Ray without a connection of its own; what users see of it is `squadron.on_ray`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Unpack

import ray
from ray.actor import ActorHandle

from squadron.bridge.serve.object_shelf import ObjectShelf
from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name, shelf_name
from squadron.config import Settings
from squadron.runtime.asking.options import AskKeywords
from squadron.runtime.errors import BridgeUnavailableError, ClaimLostError, InvalidInputError
from squadron.runtime.wire.outcome import Outcome

#: How long a value is kept when nobody says, in seconds: as long as an outcome.
KEEP_S = 3600.0
#: A bridge that dies is back within seconds; so often a call is made anew.
TRIES = 10


def _bridge(env: str | None) -> ActorHandle[Any]:
    name = env or Settings.load().env
    try:
        return ray.get_actor(bridge_name(name), namespace=NAMESPACE)
    except ValueError:
        raise BridgeUnavailableError(
            f"this Ray cluster has no bridge of environment {name!r}",
            hint="start it with `squadron up`, or name another: env=…, or SQUADRON_ENV",
        ) from None


def ask(
    topic: str, content: Any = None, *, env: str | None = None, **options: Unpack[AskKeywords]
) -> ray.ObjectRef[Outcome]:
    """Ask an agent from a Ray task or actor: `ray.get(on_ray.ask("echo.say", {"text": "hi"})).unwrap()`.

    It goes through the bridge, so that no credential and no route to NATS is needed where this runs. A bridge that
    is killed meanwhile comes back and is asked again, for the same task.

    Args:
        topic: what to ask.
        content: the input.
        env: the environment; by default that of the settings here.
        options: as of `Squad.ask`.

    Returns:
        A reference to the outcome, for `ray.get`, `ray.wait` or `await`.

    Raises:
        BridgeUnavailableError: the environment is not up on this cluster.
    """
    # Under an id of its own: whoever asks twice is one who asks.
    options.setdefault("task_id", uuid.uuid4().hex)
    call: Any = _bridge(env).ask.options(max_task_retries=TRIES)
    reference: ray.ObjectRef[Outcome] = call.remote(topic, content, **options)
    return reference


def bind(
    pattern: str,
    target: Any,
    method: str = "__call__",
    *,
    slots: int = 32,
    description: str = "",
    env: str | None = None,
) -> None:
    """Serve a topic or family with a method of a named Ray actor, or of a Serve handle.

    An object's fields become keyword arguments, anything else the one argument.

    Args:
        pattern: the topic, or `family.*`.
        target: a handle of a named actor, or `serve.get_app_handle(…)`.
        method: of it; an actor needs one.
        slots: calls that may be under way at once.
        description: by which the topic is found.
        env: the environment; by default that of the settings here.

    Raises:
        RouteConflictError: somebody serves an overlapping pattern.
        ConfigError: the target has no name by which it is found again.
        InvalidSubjectError: the pattern breaks the grammar.
        BridgeUnavailableError: the environment is not up on this cluster.
    """
    _get(_bridge(env).bind.remote(pattern, target, method, slots=slots, description=description))


def unbind(pattern: str, *, env: str | None = None) -> None:
    """Take a binding away; what waits in its mailbox stays.

    Raises:
        ConfigError: there is no such binding.
        BridgeUnavailableError: the environment is not up on this cluster.
    """
    _get(_bridge(env).unbind.remote(pattern))


def _get(ref: ray.ObjectRef[Any]) -> Any:
    """What a call returned; its own error, and not Ray's wrapping of it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None


class AskEach:
    """For Ray Data: asks a topic with each row, as `map_batches(AskEach, fn_constructor_args=("echo.say",), …)`.

    At most `batch_size` times `concurrency` tasks are under way, both of them options of `map_batches`; the data
    set waits meanwhile. Each row is kept, with three columns more: `outcome` (its kind), `data` and `reason`.

    Args:
        topic: what to ask.
        env: the environment; by default that of the settings where it runs.
        options: as of `Squad.ask`.
    """

    def __init__(self, topic: str, *, env: str | None = None, **options: Unpack[AskKeywords]) -> None:
        self._topic, self._env, self._options = topic, env, options

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Ask with each row of a batch of columns."""
        # NumPy's own numbers are no JSON.
        columns = {name: values.tolist() for name, values in batch.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        outcomes = ray.get([ask(self._topic, row, env=self._env, **self._options) for row in rows])
        return {
            **columns,
            "outcome": [outcome.kind for outcome in outcomes],
            "data": [getattr(outcome, "data", None) for outcome in outcomes],
            "reason": [outcome.reason for outcome in outcomes],
        }


def put(value: Any, *, keep_s: float = KEEP_S, env: str | None = None) -> dict[str, Any]:
    """Leave a large value, as an array, in Ray's object store; what is returned stands for it in a message.

    It is copied once, and not at all where it is read on the same node. It outlives the process that calls this,
    and is lost with the node that holds it.

    Args:
        value: anything that Ray can pickle.
        keep_s: how long it is kept, in seconds.
        env: the environment; by default that of the settings here.

    Returns:
        A claim: JSON, that any agent, caller or Ray task of this cluster gives to `get`.
    """
    name = env or Settings.load().env
    shelf = ObjectShelf.options(  # type: ignore[attr-defined]  # made by ray.remote
        name=shelf_name(name), namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=-1
    ).remote()
    id = ray.get(shelf.keep.remote(value, keep_s))
    shown = {
        about: _plain(getattr(value, about)) for about in ("shape", "dtype", "nbytes") if hasattr(value, about)
    }
    return {"ray": f"{name}/{id}", **shown}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if isinstance(value, int) else str(value)


def get(claim: Any) -> Any:
    """The value that a claim of `put` stands for; an array is not copied, and read-only.

    Raises:
        InvalidInputError: it is no claim.
        ClaimLostError: the value is over, or was lost with its node.
    """
    env, _, id = str(claim.get("ray", "")).rpartition("/") if isinstance(claim, Mapping) else ("", "", "")
    if not env or not id:
        raise InvalidInputError(
            f"{str(claim)[:80]!r} is no claim", field="claim", hint="give what `on_ray.put` returned, as it is"
        )
    lost = ClaimLostError(
        f"the value {id} is not kept any more", hint="have it made again, or keep it longer: keep_s"
    )
    try:
        shelf: Any = ray.get_actor(shelf_name(env), namespace=NAMESPACE)
        found: list[ray.ObjectRef[Any]] = ray.get(shelf.find.remote(id))
        if found:
            return ray.get(found[0])
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
        raise lost from None
    raise lost
