"""What changed between two versions of a topic: what callers of the older one did that the newer refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from squadron.runtime.wire.topics import AgentCard, SemanticTopic

#: Changes that are kept of a topic, the newest.
MOST_KEPT = 10
#: How deep into a schema it is looked: what lies deeper is told as a whole.
MOST_DEPTH = 3
#: How many parts of a schema are put in where it refers to them: small schemas of strangers can spell out endless
#: ones.
MOST_PARTS = 5000


def breaks(old: SemanticTopic, new: SemanticTopic) -> list[str]:
    """What of the new topic an older caller doesn't know of: inputs that are refused, outputs that are gone."""
    inputs = (spelled_out(each.input_schema) for each in (old, new))
    outputs = (spelled_out(each.output_schema) for each in (old, new))
    return list(dict.fromkeys([*_inputs(*inputs), *_outputs(*outputs)]))


def breaks_of(old: AgentCard, new: AgentCard) -> list[str]:
    """What callers who know the old card would find otherwise at an agent that works by the new one."""
    after = {topic.name: topic for topic in new.topics}
    told: list[str] = []
    for topic in old.topics:
        if (now := after.get(topic.name)) is None:
            told.append(f"{topic.name} is gone")
            continue
        told += [f"{topic.name}: {each}" for each in breaks(topic, now)]
        if now.sealed and not topic.sealed:
            told.append(f"{topic.name}: inputs are to be sealed")
    return told


def spelled_out(root: Any) -> Any:
    """A schema with what it refers to (`$defs`) in the place of references; inside of itself it is anything."""
    left = MOST_PARTS

    def put_in(part: Any, within: tuple[str, ...]) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or not isinstance(part, dict | list):
            return part
        if isinstance(part, list):
            return [put_in(each, within) for each in part]
        named = str(part.get("$ref", ""))
        if (meant := _meant(named, root)) is not None:
            if named in within:
                return {}
            beside = {key: each for key, each in part.items() if key != "$ref"}
            return put_in(meant | beside, (*within, named))
        return {key: put_in(each, within) for key, each in part.items() if key != "$defs"}

    return put_in(root, ())


def _meant(ref: str, root: Any) -> dict[str, Any] | None:
    named = ref.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
    defined = root.get("$defs") if isinstance(root, dict) else None
    found = defined.get(named) if isinstance(defined, dict) and ref.startswith("#/$defs/") else None
    return found if isinstance(found, dict) else None


def _held(field: Any) -> tuple[str, Any]:
    """What a field holds in the end (that of an optional one, items of a list, values of a mapping), with its path
    from there."""
    path = ""
    while isinstance(field, dict):
        options = [each for each in _listed(field.get("anyOf")) if each != {"type": "null"}]
        if len(options) == 1:
            field = options[0]
        elif isinstance(items := field.get("items"), dict):
            field, path = items, f"{path}[]"
        elif not _fields(field) and isinstance(values := field.get("additionalProperties"), dict):
            field, path = values, f"{path}.*"
        else:
            break
    return path, field


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _inputs(old: Any, new: Any, at: str = "", depth: int = MOST_DEPTH) -> Iterator[str]:
    before, after = _fields(old), _fields(new)
    for name in sorted(_required(new) - _required(old)):
        yield f"input {at}{name} is required"
    if isinstance(new, dict) and new.get("additionalProperties") is False:
        for name in sorted(before.keys() - after.keys()):
            yield f"input {at}{name} is gone"
    for name in sorted(before.keys() & after.keys()):
        (was_in, was), (now_in, now) = _held(before[name]), _held(after[name])
        told = list(_narrowed(before[name], after[name], f"input {at}{name}"))
        if not told and was_in == now_in:
            told = list(_narrowed(was, now, f"input {at}{name}{now_in}"))
        yield from told
        if depth and not told and was_in == now_in:
            yield from _inputs(was, now, f"{at}{name}{now_in}.", depth - 1)


def _outputs(old: Any, new: Any, at: str = "", depth: int = MOST_DEPTH) -> Iterator[str]:
    (was_in, old_held), (now_in, new_held) = _held(old), _held(new)
    before, after = _fields(old_held), _fields(new_held)
    told = f"output {at[:-1]}" if at else "the output"
    if old and new and (was := _type(old)) != (now := _type(new)):
        yield f"{told} is {now}, not {was}"
    elif was_in == now_in and now_in and (was := _type(old_held)) != (now := _type(new_held)):
        yield f"{told}{now_in} is {now}, not {was}"
    elif was_in == now_in:
        at = f"{at[:-1]}{now_in}." if at or now_in else ""
        for name in sorted(before.keys() - after.keys()):
            yield f"output {at}{name} is gone"
        for name in sorted(before.keys() & after.keys()) if depth else ():
            yield from _outputs(before[name], after[name], f"{at}{name}.", depth - 1)


def _narrowed(old: Any, new: Any, what: str) -> Iterator[str]:
    if (was := _type(old)) != (now := _type(new)) and now != "anything":
        # A whole number is a number, too.
        if not set(was.split(" or ")) <= set(now.split(" or ")) | ({"integer"} if "number" in now else set()):
            yield f"{what} is {now}, not {was}"
        return
    old, new = (each if isinstance(each, dict) else {} for each in (old, new))
    if (given := _values(new)) is not None:
        before = _values(old)
        if before is None or any(value not in given for value in before):
            yield f"{what} is one of {', '.join(map(str, given))}"
    for limit, word, tighter in (
        ("minimum", "at least", max),
        ("maximum", "at most", min),
        ("exclusiveMinimum", "more than", max),
        ("exclusiveMaximum", "less than", min),
        ("minLength", "at least so long:", max),
        ("maxLength", "at most so long:", min),
        ("minItems", "at least so many:", max),
        ("maxItems", "at most so many:", min),
    ):
        now_is, was_is = new.get(limit), old.get(limit)
        if now_is is not None and now_is != was_is and (was_is is None or tighter(now_is, was_is) == now_is):
            yield f"{what} is {word} {now_is}"
    for form in ("pattern", "format"):
        if new.get(form) not in (None, old.get(form)):
            yield f"{what} has the {form} {new[form]}"


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The only values that a schema takes, if it lists them."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _fields(schema: Any) -> dict[str, Any]:
    fields = schema.get("properties") if isinstance(schema, dict) else None
    return fields if isinstance(fields, dict) else {}


def _required(schema: Any) -> set[str]:
    needed = schema.get("required") if isinstance(schema, dict) else None
    return {str(name) for name in needed} if isinstance(needed, list) else set()


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "anything"
    kinds = (
        schema.get("type") or [_type(each) for each in schema.get("anyOf", ())] or schema.get("$ref", "anything")
    )
    if isinstance(kinds, str):
        return kinds.rsplit("/", 1)[-1]
    return " or ".join(sorted(map(str, kinds)))


def with_changes(old: AgentCard | None, new: AgentCard, when: str) -> AgentCard:
    """The new card, whose topics say what of them is not as it was on the old one.

    Args:
        when: the day, for those who read it.
    """
    before = {topic.name: topic for topic in old.topics} if old is not None else {}
    topics = []
    for topic in new.topics:
        if (was := before.get(topic.name)) is not None:
            version = f" (version {topic.version})" if topic.version != was.version else ""
            told = [f"since {when}{version} {each}" for each in breaks(was, topic)]
            topic = topic.model_copy(update={"changed": (*was.changed, *told)[-MOST_KEPT:]})
        topics.append(topic)
    return new.model_copy(update={"topics": tuple(topics)})
