"""topics: what can be asked, one of them in full, why it is found, and what was learned of it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from squadron.cli import frame
from squadron.cli.environment import Json
from squadron.runtime.errors import BridgeUnavailableError, InvalidInputError, SquadronError

if TYPE_CHECKING:
    from squadron.client.squad import Squad
    from squadron.runtime.wire.topics import ScoredTopic, SemanticTopic

#: Longest text and list in a line that asks a topic.
MOST_SAMPLE = 100
#: Texts that are of a format.
_TEXTS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "email": "ann@example.com",
    "uri": "https://example.com",
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="For example license.classify; see `squadron topics`.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(invoke_without_command=True)
    group.callback()(topics)
    for command in (show, why, clear):
        group.command()(command)
    app.add_typer(group, name="topics", help="List what can be asked now, or find it by intent (best first).")


def topics(
    ctx: typer.Context,
    search: Annotated[str, typer.Option("--search", "-s", help="What you want done, in plain words.")] = "",
    most: Annotated[int, typer.Option("--most", help="Longest list of a search.", min=1)] = 8,
    least: Annotated[
        float | None, typer.Option("--least", help="Lowest score that is offered, 0 to 1.", min=0, max=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be asked now, or find it by intent (best first)."""
    if ctx.invoked_subcommand is None:
        frame.execute(_topics(ctx, search, most, least, as_json), as_json=as_json)


async def _topics(ctx: typer.Context, search: str, most: int, least: float | None, as_json: bool) -> int:
    from squadron.cli.searched import remember

    settings = frame.settings_of(ctx)
    async with frame.connected(settings) as squad:
        found = await squad.search(search, most=most, least=least) if search else squad.topics()
    if search:
        remember(settings, search, [one.topic.name for one in found])
    if as_json:
        frame.print_json([_told(one) for one in found])
    elif not found:
        frame.tell("Nothing fits." if search else "Nothing is served yet: squadron deploy module:Agent")
    elif sys.stdout.isatty():
        _show_topics(found)
    else:
        for one in found:
            frame.write_row(one.topic.name, one.agent, *_about(one.topic))
    return frame.OK


def _told(one: ScoredTopic) -> dict[str, Any]:
    return {**one.topic.model_dump(), "agent": one.agent, "score": one.score, "why": one.why}


def _about(topic: SemanticTopic) -> tuple[str, str]:
    from squadron.runtime.wire.topics import describe_input

    return describe_input(topic.input_schema), topic.description.partition("\n")[0]


def _show_topics(found: Sequence[ScoredTopic]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console = frame.out()
    for one in found:
        fields, description = _about(one.topic)
        score = f"  {one.score:.2f}" if one.score else ""
        console.print(Text.assemble((one.topic.name, "bold cyan"), (f"  {one.agent}{score}", "dim")))
        console.print(Padding(Text(description), (0, 0, 0, 2)))
        console.print(Padding(Text(fields, "dim"), (0, 0, 0, 2)))
    console.print(f"\nAsk one: {command_line(found[0].topic)}", markup=False)


# --- one topic ---------------------------------------------------------------------------------------


def show(
    ctx: typer.Context,
    name: Name,
    openapi: Annotated[bool, typer.Option("--openapi", help="Print an OpenAPI 3.1 document of it.")] = False,
    as_json: Json = False,
) -> None:
    """Show one topic: what it is for, takes and gives, how it fares, and how to ask it."""
    frame.execute(_show(ctx, name, openapi, as_json), as_json=as_json)


async def _show(ctx: typer.Context, name: str, openapi: bool, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        topic, agents = _served(squad, name)
        facts = await _track(squad, topic.name)
        running = await _running(squad, agents)
    if openapi:
        frame.print_json(open_api(topic))
        return frame.OK
    # A member of a family is described as the family is, and asked by its own name.
    asked = topic.model_copy(update={"name": name})
    if as_json:
        ways = {"command": command_line(asked), "python": python_line(asked)}
        frame.print_json({**topic.model_dump(), "agents": agents, "running": running, "facts": facts, **ways})
    else:
        for line in told_of(topic, asked, agents, running, facts):
            frame.write(f"{line}\n")
    return frame.OK


def _served(squad: Squad, name: str) -> tuple[SemanticTopic, list[str]]:
    from squadron.runtime.wire.subjects import matches

    served = squad.topics()
    found = [one for one in served if one.topic.name == name]
    found = found or [one for one in served if one.topic.is_pattern and matches(one.topic.name, name)]
    if not found:
        raise InvalidInputError(f"nobody serves {name!r}", field="name", hint="see `squadron topics`")
    return found[0].topic, [one.agent for one in found]


async def _track(squad: Squad, name: str) -> dict[str, Any]:
    """What the bridge knows of how a topic's tasks went; nothing where there is none to ask."""
    try:
        return await squad.track(name)
    except (BridgeUnavailableError, AttributeError):
        return {}


async def _running(squad: Squad, agents: Sequence[str]) -> dict[str, str]:
    """Which version of its code each agent runs, and which beside it."""
    try:
        told = (await squad.status())["agents"]
    except (SquadronError, AttributeError):
        return {}
    found = {each["agent"]: str(each.get("version", "")) for each in told if each["agent"] in agents}
    for each in told:
        if each["agent"] in found and (canary := each.get("canary")):
            found[each["agent"]] += f"; canary {canary['version']} on {canary['weight']} %"
    return found


def told_of(
    topic: SemanticTopic,
    asked: SemanticTopic,
    agents: Sequence[str],
    running: Mapping[str, str],
    facts: Mapping[str, Any],
) -> list[str]:
    """All that is known of a topic, in lines for people."""
    lines = [topic.name, *_indented(topic.description.splitlines() or ["(no description)"])]
    code = [f"{agent} (code {running[agent]})" if running.get(agent) else agent for agent in agents]
    lines += ["", f"served by  {', '.join(code)}", f"version    {topic.version}"]
    lines += [f"tags       {', '.join(topic.tags)}"] if topic.tags else []
    for title, given in (("examples", topic.examples), ("changed", topic.changed)):
        lines += [title, *_indented(given)] if given else []
    lines += ["takes", *_indented(_fields(topic.input_schema)), "gives", *_indented(_fields(topic.output_schema))]
    for agent, each in facts.get("agents", {}).items():
        ended = ", ".join(
            f"{count:,} {kind.replace('_', ' ')}" for kind, count in sorted(each["outcomes"].items())
        )
        cost = f", {each['usd']:.4f} USD a task" if each["usd"] else ""
        lines += ["tasks", f"  {agent}: {ended or 'none yet'}{cost}; {_counted(each['replicas'])}"]
    return [*lines, "", "ask it", f"  {command_line(asked)}", f"  {python_line(asked)}"]


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'s' if replicas != 1 else ''}"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _fields(schema: Mapping[str, Any]) -> list[str]:
    from squadron.runtime.wire.topics import describe_input

    fields, needed = schema.get("properties"), schema.get("required", ())
    if not isinstance(fields, dict) or not fields:
        return [str(schema.get("type", "anything")) if schema else "anything"]
    lines = []
    for name, field in fields.items():
        said = describe_input({"properties": {name: field}})
        about = f": {field['description']}" if isinstance(field, dict) and field.get("description") else ""
        lines.append(f"{said}{' (required)' if name in needed else ''}{about}")
    return lines


def sample_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An input with a value of the right kind for each field that is required, or for the first one."""
    from squadron.runtime.wire.schema_changes import spelled_out

    return _sample(spelled_out(schema))


def _sample(schema: Mapping[str, Any], *, at_least_one: bool = True) -> dict[str, Any]:
    fields = schema.get("properties")
    if not isinstance(fields, dict) or not fields:
        return {}
    wanted = schema.get("required") or [next(iter(fields))] * at_least_one
    return {name: _value(fields.get(name, {})) for name in wanted}


def _value(field: Any) -> Any:
    if not isinstance(field, dict):
        return "..."
    for given in ("default", "const"):
        if field.get(given) is not None:
            return field[given]
    for listed in ("examples", "enum"):
        if field.get(listed):
            return field[listed][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if options := [each for each in field.get(choice) or () if each != {"type": "null"}]:
            return _value(options[0])
    kinds = field.get("type")
    match kinds[0] if isinstance(kinds, list) and kinds else kinds:
        case "integer" | "number" as kind:
            return _number(field, whole=kind == "integer")
        case "boolean":
            return True
        case "array":
            return [_value(field.get("items"))] * int(min(_limit(field, "minItems") or 0, MOST_SAMPLE))
        case "object":
            return _sample(field, at_least_one=False)
    text = _TEXTS.get(str(field.get("format")), "...")
    most = _limit(field, "maxLength")
    return text.ljust(int(min(_limit(field, "minLength") or 0, MOST_SAMPLE)), ".")[
        : None if most is None else int(most)
    ]


def _number(field: Mapping[str, Any], *, whole: bool) -> float:
    """1, or the nearest that is taken."""
    step = 1 if whole else 0.5
    found: float = 1 if whole else 1.5
    for limit, further, tighter in (
        ("minimum", 0, max),
        ("exclusiveMinimum", step, max),
        ("maximum", 0, min),
        ("exclusiveMaximum", -step, min),
    ):
        if (bound := _limit(field, limit)) is not None:
            found = tighter(found, bound + further)
    return found


def _limit(field: Mapping[str, Any], name: str) -> float | None:
    limit = field.get(name)
    # Schemas of strangers say anything.
    return limit if isinstance(limit, int | float) and not isinstance(limit, bool) else None


def command_line(topic: SemanticTopic) -> str:
    """A line for a shell that asks a topic."""
    sample = sample_of(topic.input_schema)
    said = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in sample.items()]
    return shlex.join(["squadron", "ask", topic.name, *said])


def python_line(topic: SemanticTopic) -> str:
    """A line of Python that asks a topic."""
    return f'await squad.ask("{topic.name}", {sample_of(topic.input_schema)!r})'


def open_api(topic: SemanticTopic) -> dict[str, Any]:
    """A topic as an OpenAPI 3.1 document, for tools that read those: a call is a POST of its input."""
    components: dict[str, Any] = {}
    taken = _with_components(topic.input_schema, components, "Input")
    given = _with_components(topic.output_schema, components, "Output")
    content = {"application/json": {"schema": given}}
    examples = {"x-examples": list(topic.examples)} if topic.examples else {}
    operation = {
        "operationId": topic.tool_name,
        "summary": topic.description.partition("\n")[0],
        "description": topic.description,
        "tags": list(topic.tags),
        "requestBody": {"required": True, "content": {"application/json": {"schema": taken}}},
        "responses": {"200": {"description": "Its result.", **({"content": content} if given else {})}},
        **examples,
    }
    info = {"title": topic.name, "version": topic.version, "description": topic.description}
    document = {"openapi": "3.1.0", "info": info, "paths": {f"/{topic.name}": {"post": operation}}}
    return document | ({"components": {"schemas": components}} if components else {})


def _with_components(schema: Mapping[str, Any], components: dict[str, Any], of: str) -> dict[str, Any]:
    """A schema whose references lead to `components`, where what it defines is put: in a document of OpenAPI they
    count from its root. What it takes and what it gives may have two meanings of one name."""
    defined = schema.get("$defs")
    names = {f"#/$defs/{name}": f"{of}.{re.sub('[^A-Za-z0-9._-]', '_', name)}" for name in defined or ()}

    def led(part: Any) -> Any:
        if isinstance(part, list):
            return [led(each) for each in part]
        if not isinstance(part, dict):
            return part
        moved = {key: led(each) for key, each in part.items() if part is not schema or key != "$defs"}
        if (ref := part.get("$ref")) in names:
            moved["$ref"] = f"#/components/schemas/{names[ref]}"
        return moved

    components.update({names[f"#/$defs/{name}"]: led(each) for name, each in (defined or {}).items()})
    whole: dict[str, Any] = led(schema)
    return whole


# --- why it is found ---------------------------------------------------------------------------------


def why(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="INTENT|NAME", help="What is looked for, or a topic's name.")],
    as_json: Json = False,
) -> None:
    """Say why an intent finds what it finds, or what was learned of a topic, and from whom."""
    frame.execute(_why(ctx, what, as_json), as_json=as_json)


async def _why(ctx: typer.Context, what: str, as_json: bool) -> int:
    from squadron.runtime.wire.topics import TopicList

    async with frame.connected(frame.settings_of(ctx)) as squad:
        names = {one.topic.name for one in squad.topics()}
        lessons = await squad.lessons(what if what in names else "")
        if what in names or what in lessons:
            found, told, fits = TopicList(), {what: lessons.get(what, [])}, True
        else:
            found = await squad.search(what, least=0.0)
            told = {one.topic.name: lessons.get(one.topic.name, []) for one in found}
            fits = bool(await squad.search(what, most=1))
    if as_json:
        frame.print_json({"found": [_told(one) for one in found], "learned": told})
        return frame.OK
    for one in found:
        frame.write_row(one.topic.name, f"{one.score:.2f}", "; ".join(one.why))
    for name, learned in told.items():
        for each in learned:
            by = ", ".join(f"{'+' if sign > 0 else '-'}{source}" for source, sign in each["by"].items())
            frame.write_row(name, f"{each['weight']:+.2f}", each["intent"], by)
    if found and not fits:
        frame.tell("None of it is offered: nothing fits.")
    elif not found and not any(told.values()):
        frame.tell("Nothing was learned of it." if what in told else "Nothing fits.")
    return frame.OK


def clear(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The topic; without it all topics.")] = "",
    as_json: Json = False,
) -> None:
    """Forget what was learned of a topic, or of all."""
    frame.execute(_clear(ctx, name, as_json), as_json=as_json)


async def _clear(ctx: typer.Context, name: str, as_json: bool) -> int:
    async with frame.connected(frame.settings_of(ctx)) as squad:
        gone = await squad.lessons(name, clear=True)
    if as_json:
        frame.print_json({"forgotten": sorted(gone)})
    else:
        frame.tell(f"Forgotten: {', '.join(sorted(gone))}." if gone else "There was nothing to forget.")
    return frame.OK
