"""Pickles an agent class by value: what cloudpickle leaves out, and who is to blame if something can't travel."""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import inspect
import io
import sys
import typing
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, cast, get_type_hints

import cloudpickle
import typing_extensions
from pydantic import BaseModel

from squadron.bridge.packing.held_secrets import HeldSecretError, check_bytes, check_held
from squadron.bridge.packing.lazy import Together, imports_of
from squadron.runtime.errors import InvalidAgentError

#: Longest way to the culprit that an error tells: a class, what it uses, and so on.
MOST_STEPS = 12

_HINT = "make locks, clients and files in on_start, not at module or class level"
_SECRET_HINT = (
    "who reads the registry would read it: look it up where it runs, in on_start, with os.environ (and "
    "SQUADRON_PASS_ENV on the local cluster) or Secret('file:…'); call what is no secret by another name"
)

_cloudpickle: Any = cloudpickle.cloudpickle
_LruCache = type(functools.cache(len))
#: The code that all functions made by `singledispatch` share.
_DISPATCHES = cast("FunctionType", functools.singledispatch(lambda _: None)).__code__
_TYPED_DICTS = tuple(type(each.TypedDict("_", {})) for each in (typing, typing_extensions))


def dumps(
    agent_class: type, modules: dict[str, ModuleType], lazy: dict[str, ModuleType] | None = None
) -> tuple[bytes, set[str]]:
    """The class and what it refers to, and the names of modules that its code imports when it runs.

    Of `modules` and `__main__` by value, all else by name; those in `lazy` can be imported where it is loaded.

    Raises:
        InvalidAgentError: something can't travel; says what, and where it is referred to.
    """
    with _going_by_value(modules):
        try:
            return _dumps(Together(agent_class, lazy) if lazy else agent_class)
        except Exception as error:
            hint = _SECRET_HINT if isinstance(error, HeldSecretError) else _HINT
            raise InvalidAgentError(
                f"{agent_class.__name__} can't travel to the cluster: {_culprit(agent_class, error)}", hint=hint
            ) from None


def travels(module: ModuleType, modules: dict[str, ModuleType]) -> bool:
    """Whether a module can go by value, when these do.

    Raises:
        InvalidAgentError: it could, but holds a secret.
    """
    with _going_by_value(modules):
        error = _fails(module)
    if isinstance(error, HeldSecretError):
        raise InvalidAgentError(
            f"module {module.__name__} can't travel to the cluster: {error}", hint=_SECRET_HINT
        )
    return error is None


@contextlib.contextmanager
def _going_by_value(modules: dict[str, ModuleType]) -> Iterator[None]:
    # By its own name, once: it may be loaded under another one, too.
    each_once = {each.__name__: each for each in modules.values()}.values()
    for each in each_once:
        cloudpickle.register_pickle_by_value(each)
    try:
        yield
    finally:
        for each in each_once:
            cloudpickle.unregister_pickle_by_value(each)


def _dumps(value: Any) -> tuple[bytes, set[str]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    data = _with_steady_ids(file.getvalue())
    check_bytes(data)
    return data, pickler.imports


def _with_steady_ids(data: bytes) -> bytes:
    """The pickle with ids of classes that follow from all that is in it: the same code is the same version.

    cloudpickle gives a class a random id, by which a process that loads it twice has it once.
    """
    ids = {id.encode(): kind for kind, id in list(_cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.items())}
    used = sorted((id for id in ids if id in data), key=data.index)
    plain = data
    for id in used:
        plain = plain.replace(id, b"0" * len(id))
    digest = hashlib.sha256(plain)
    for number, id in enumerate(used):
        steady = hashlib.sha256(digest.digest() + number.to_bytes(4, "big")).hexdigest()[: len(id)]
        data = data.replace(id, steady.encode())
        with _cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
            _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[ids[id]] = steady
            _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[steady] = ids[id]
    return data


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Knows the kinds that are told by identity, or say "look me up by name" though nobody could."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        #: What the functions that go by value import when they run.
        self.imports: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            _complete(obj)
            reduced = super().reducer_override(obj)
            if isinstance(reduced, tuple):
                check_held(vars(obj))
            return _class(obj, reduced)
        if isinstance(obj, ModuleType):
            return _module(obj)
        if isinstance(obj, FunctionType):
            if obj.__code__ is _DISPATCHES and _by_value(obj.__module__):
                return _reduce_dispatch(obj)
            if _by_value(obj.__module__):
                self.imports.update(imports_of(obj))
                check_held(_held_by(obj))
            return super().reducer_override(obj)
        if held := getattr(obj, "__dict__", None):
            check_held(held)
        if type(obj) in self.dispatch_table:
            return NotImplemented
        if name := _name_in_its_library(obj):
            return getattr, (sys.modules[type(obj).__module__], name)
        if reduce := _REDUCERS.get(type(obj)):
            return reduce(obj)
        return _by_name_only(obj)


def _held_by(function: FunctionType) -> dict[str, Any]:
    """What a function takes along, by the names that it has in it."""
    code, used = function.__code__, _cloudpickle._extract_code_globals(function.__code__)
    held = {name: function.__globals__[name] for name in used if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            held[name] = cell.cell_contents
    by_place = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    return held | dict(zip(reversed(by_place), reversed(defaults), strict=False)) | (function.__kwdefaults__ or {})


def _by_value(module: str) -> bool:
    loaded = sys.modules.get(module)
    return module == "__main__" or (loaded is not None and not _cloudpickle._should_pickle_by_reference(loaded))


def _module(obj: ModuleType) -> Any:
    if not _by_value(obj.__name__):
        return NotImplemented
    # What it holds comes later, because that may refer to it.
    held = {name: value for name, value in vars(obj).items() if name != "__builtins__"}
    check_held(held)
    return ModuleType, (obj.__name__,), held, None, None, _fill


def _fill(module: ModuleType, held: dict[str, Any]) -> None:
    vars(module).update(held, __builtins__=builtins)


def _name_in_its_library(obj: Any) -> str:
    """Name of a value that a library keeps under a name, as `dataclasses.MISSING`: such are told by identity."""
    module = sys.modules.get(type(obj).__module__)
    if module is None or module.__name__ == "builtins" or _by_value(module.__name__):
        return ""
    return next((name for name, value in list(vars(module).items()) if value is obj), "")


def _by_name_only(obj: Any) -> Any:
    """How to make what can only be looked up by name, where its module is not.

    Raises:
        TypeError: nobody knows how to make it anew.
    """
    kind: Any = type(obj)
    if kind.__reduce__ is object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__:
        return NotImplemented
    if not _by_value(str(getattr(obj, "__module__", ""))) or not isinstance(obj.__reduce__(), str):
        return NotImplemented
    names = {"__module__": obj.__module__}
    match kind.__name__:
        case "_lru_cache_wrapper":
            return _lru_cache, (obj.__wrapped__, obj.cache_parameters()), obj.__dict__
        case "NewType":
            return kind, (obj.__name__, obj.__supertype__), names | {"__qualname__": obj.__qualname__}
        case "ParamSpec" | "TypeVarTuple":
            return kind, (obj.__name__,), names
        case "TypeAliasType":
            return kind, (obj.__name__, obj.__value__)
    raise TypeError(f"a {kind.__name__} can only be looked up by name, and its module stays here")


def _complete(obj: type) -> None:
    """Have pydantic look up the names that a model waits for: where it goes, nobody could."""
    if (
        getattr(obj, "__pydantic_complete__", True) is False
        and issubclass(obj, BaseModel)
        and _by_value(obj.__module__)
    ):
        with contextlib.suppress(Exception):  # who needs the type says so
            obj.model_rebuild(raise_errors=False)


def _class(obj: type, reduced: Any) -> Any:
    """A class by value with its annotations as types: where it goes, nobody could look the names up."""
    if not (isinstance(reduced, tuple) and len(reduced) == 6):
        return reduced
    make, args, (attributes, slots), *rest = reduced
    hints = _own_hints(obj)
    if "__annotations__" in attributes:
        attributes["__annotations__"] = {k: hints.get(k, v) for k, v in attributes["__annotations__"].items()}
    if "__dataclass_fields__" in attributes:
        attributes["__dataclass_fields__"] = {
            name: _typed(field, hints) for name, field in attributes["__dataclass_fields__"].items()
        }
    if isinstance(obj, _TYPED_DICTS):
        # Its metaclass refuses the bases that it gives its classes itself.
        make, args = type.__new__, (type(obj), obj.__name__, obj.__bases__, {"__module__": obj.__module__})
    return make, args, (attributes, slots), *rest


def _own_hints(obj: type) -> dict[str, Any]:
    try:
        return get_type_hints(obj, include_extras=True)
    except Exception:
        # A name that stands only under `if TYPE_CHECKING`: who needs the type says so.
        return {}


def _typed(field: dataclasses.Field[Any], hints: dict[str, Any]) -> dataclasses.Field[Any]:
    if not isinstance(field.type, str) or field.name not in hints:
        return field
    typed = object.__new__(type(field))
    for slot in dataclasses.Field.__slots__:
        setattr(typed, slot, getattr(field, slot))
    typed.type = hints[field.name]
    return typed


def _lru_cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(obj: Any) -> Any:
    # Up to Python 3.11 it holds a lock.
    return functools.cached_property, (obj.func,), {"attrname": obj.attrname, "__doc__": obj.__doc__}


def _reduce_context_var(obj: contextvars.ContextVar[Any]) -> Any:
    try:
        # In a context where nobody has set it, it has its default.
        return _context_var, (obj.name, contextvars.Context().run(obj.get))
    except LookupError:
        return contextvars.ContextVar, (obj.name,)


def _context_var(name: str, default: Any) -> contextvars.ContextVar[Any]:
    return contextvars.ContextVar(name, default=default)


def _reduce_dispatch(obj: Any) -> Any:
    registry = dict(obj.registry)
    return functools.singledispatch, (registry.pop(object),), registry, None, None, _register


def _register(dispatch: Any, registry: dict[type, Callable[..., Any]]) -> None:
    for kind, function in registry.items():
        dispatch.register(kind, function)


def _reduce_context_manager(obj: Any) -> Any:
    # As a decorator it is made anew for each call; the generator that it has by then is never begun.
    return _context_manager, (type(obj), obj.func, obj.args, obj.kwds)


def _context_manager(kind: Any, function: Callable[..., Any], args: Any, kwds: Any) -> Any:
    return kind(function, args, kwds)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    contextlib._GeneratorContextManager: _reduce_context_manager,
    contextlib._AsyncGeneratorContextManager: _reduce_context_manager,
    functools.cached_property: _reduce_cached_property,
    contextvars.ContextVar: _reduce_context_var,
}


def _culprit(agent_class: type, error: Exception) -> str:
    """Where the first thing that can't travel is referred to, and what it is."""
    path, value, seen = [agent_class.__name__], cast("Any", agent_class), {id(agent_class)}
    while len(path) < MOST_STEPS:
        for name, part in _parts(value):
            if id(part) in seen:
                continue
            seen.add(id(part))
            if why := _fails(part):
                path, value, error = [*path, name], part, why
                break
        else:
            break
    kind = type(value)
    what = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return f"{' → '.join(path)} is a {what}: {error}"


def _fails(value: Any) -> Exception | None:
    try:
        _dumps(value)
    except Exception as error:
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value refers to, each with a name to find it by."""
    value = getattr(value, "__func__", value)
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType):
        used = _cloudpickle._extract_code_globals(value.__code__)
        for name in used:
            if name in value.__globals__:
                yield f"{name!r} of {value.__module__}", value.__globals__[name]
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                yield f"{name!r}", cell.cell_contents
        parameters = inspect.signature(value, follow_wrapped=False).parameters.values()
        yield from ((f"{each.name}=", each.default) for each in parameters if each.default is not each.empty)
        yield from vars(value).items()
    elif isinstance(value, type):
        if not _by_value(value.__module__):
            return
        yield from ((base.__name__, base) for base in value.__bases__)
        yield from ((name, each) for name, each in vars(value).items() if name not in ("__dict__", "__weakref__"))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", each) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{n}]", each) for n, each in enumerate(value))
    elif hasattr(value, "__wrapped__"):
        yield "__wrapped__", value.__wrapped__
    else:
        yield from ((k, each) for k, each in getattr(value, "__dict__", {}).items() if k != "__builtins__")
