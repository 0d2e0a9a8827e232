"""An MCP server as an agent: each of its tools is a topic."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from squadron.actors.operations import Operation
from squadron.actors.remote.foreign_schemas import foreign_schema, foreign_words
from squadron.actors.remote.mcp_documents import documents_of, fetched, is_document
from squadron.actors.remote.mcp_server import McpServer
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.runtime.errors import (
    ConfigError,
    InvalidInputError,
    ServerUnavailableError,
    SquadronError,
    Terminal,
    UnansweredError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import backoff_s
from squadron.runtime.running.context import TurnContext
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.doors_passed import doors_tags

if TYPE_CHECKING:
    import mcp_types as types

    from squadron.actors.remote.mcp_link import McpLink

#: After its tools could not be listed they are looked for again, in seconds: soon, and then more and more seldom.
LOOK_AGAIN_S, LONGEST_LOOK_S = 1.0, 60.0
#: In the SDK's words: a session that a server has forgotten over a restart, and a status of 500 or more, say.
_BROKE = ("Session terminated", "Server returned an error response")
#: What people are told where a model wants a tool called that its server says may destroy something.
DESTRUCTIVE = "Its server says that it may destroy something."
#: Where our own gateways say which topic a tool is, and how many of them it came through.
_TOPIC_META, _DOORS_META = "squadron/topic", "squadron/doors"
#: The turn in which a call is made; what a server asks on the way is asked of this turn's people.
_turn: ContextVar[TurnContext | None] = ContextVar("mcp_turn", default=None)

_log = get_logger("squadron.mcp")


class McpAgent(RemoteAgent):
    """Stands for an MCP server: each replica has a connection, or a process, of its own."""

    slots: ClassVar[int] = 16

    @classmethod
    def peer(cls) -> str:
        """The server, if it is on the bus."""
        return f"mcp:{bus}" if (bus := McpServer.of(cls.server).bus) else ""

    async def on_start(self) -> None:
        """Connect.

        Raises:
            ConfigError: the extra is not installed, or a secret is not there.
            ServerUnavailableError: the server can't be reached.
        """
        self._turns: list[TurnContext] = []
        await load_mcp()
        from squadron.actors.remote.mcp_errand import McpErrands
        from squadron.actors.remote.mcp_link import McpLink

        async def ask(params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
            return await self._elicit(None, params)

        self._errands = McpErrands(_turn.get, ask)
        self._link = McpLink(McpServer.of(self.server), self._elicit, self.ports, self._errands)
        await self._link.client()

    async def on_stop(self) -> None:
        """Leave it."""
        await self._link.aclose()

    async def operations_now(self) -> Sequence[Operation]:
        """Its tools, by name."""
        return await operations_of(self._link, self.name)

    async def changes(self) -> AsyncIterator[Sequence[Operation]]:
        """Its tools, each time they may be others: at the start, at news, and after a connection broke."""
        self._link.changed.set()
        failed = 0
        while True:
            await self._link.changed.wait()
            self._link.changed.clear()
            try:
                yield await self.operations_now()
                failed = 0
            except ServerUnavailableError as error:
                failed += 1
                _log.info("mcp.no_tools", agent=self.name, error=str(error))
                # Nothing else tells that it is back.
                await asyncio.sleep(backoff_s(failed, LOOK_AGAIN_S, LONGEST_LOOK_S))
                self._link.changed.set()

    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Call the tool. A cancelled or late call is cancelled there, too.

        Raises:
            Terminal: the tool failed, or the server refuses the call.
            ServerUnavailableError: it went away; another attempt may help.
        """
        import anyio
        from mcp.shared.exceptions import MCPError

        client = await self._link.client()

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            told = {"progress": progress, "total": total, "message": message}
            await ctx.emit({name: value for name, value in told.items() if value is not None})

        with self._in_turn(ctx):
            try:
                if is_document(operation.name):
                    return await fetched(client, operation.name, content)
                result = await self._errands.taken_up(client.session, ctx)
                if result is None:
                    result = await client.call_tool(operation.name, content, progress_callback=tell)
            except MCPError as error:
                if _went_away(error):
                    self._link.drop(client)
                    raise ServerUnavailableError(f"{self.name}: {error.error.message}"[:500]) from None
                raise Terminal(f"{error.error.message} ({error.error.code})"[:2000]) from None
            except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
                self._link.drop(client)
                raise ServerUnavailableError(f"{self.name}: {type(error).__name__}: {error}"[:500]) from None
            except (ValueError, RuntimeError) as error:
                # Pydantic's are of them: what it sent is not of the protocol, or not what the tool promises; or it
                # asks for ever.
                raise Terminal(f"{operation.name} answers with what it does not promise: {error}"[:2000]) from None
        return _result(operation.name, result)

    @contextmanager
    def _in_turn(self, ctx: TurnContext) -> Iterator[None]:
        before = _turn.set(ctx)
        self._turns.append(ctx)
        try:
            yield
        finally:
            self._turns.remove(ctx)
            _turn.reset(before)

    async def _elicit(
        self, context: Any, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """Have people answer what the server asks."""
        import mcp_types as types

        turn = _turn.get()
        if turn is None and len(self._turns) == 1:
            # On standard streams the older wire does not say to which call a question belongs.
            turn = self._turns[0]
        if turn is None:
            _log.warning("mcp.question_of_nobody", agent=self.name, calls=len(self._turns))
            return types.ElicitResult(action="cancel")
        message, schema = f"{self.name} asks: {params.message}", {"type": "object", "properties": {}}
        if isinstance(params, types.ElicitRequestURLParams):
            message += f"\n{params.url}"
        else:
            schema = dict(params.requested_schema)
        try:
            reply = await turn.ask_person(message, schema=schema)
        except UnansweredError:
            return types.ElicitResult(action="cancel")
        except InvalidInputError as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error.args[0]))
        if not reply.accepted or params.mode == "url":
            return types.ElicitResult(action=reply.action)
        # What was left out is what its form says.
        fields: dict[str, Any] = params.requested_schema.get("properties") or {}
        preset = {
            name: field["default"]
            for name, field in fields.items()
            if isinstance(field, dict) and "default" in field
        }
        return types.ElicitResult(action="accept", content=preset | dict(reply.content))


def check_installed() -> None:
    """See that the extra is there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("mcp") is None:
        raise ConfigError("MCP needs mcp, which is not installed", hint="pip install 'squadron-ray[mcp]'")


async def load_mcp() -> None:
    """Load the extra, in a thread: half a second of CPU, and others of this process may have tasks.

    Raises:
        ConfigError: it is not installed.
    """
    check_installed()
    await asyncio.to_thread(importlib.import_module, "squadron.actors.remote.mcp_link")


async def look_at(server: McpServer, agent: str, ports: Ports) -> tuple[list[Operation], str]:
    """What a server can do, and what it says of itself.

    Raises:
        ConfigError: the extra is not installed, or a secret is not there.
        ServerUnavailableError: it can't be reached.
    """
    await load_mcp()
    from squadron.actors.remote.mcp_link import McpLink

    link = McpLink(server, None, ports)
    try:
        return await operations_of(link, agent), foreign_words((await link.client()).instructions)
    finally:
        await link.aclose()


async def operations_of(link: McpLink, agent: str) -> list[Operation]:
    """A server's tools as operations, by name, and what has its resources and prompts.

    Tools that can't be topics are left out, and told of in the log.

    Raises:
        ServerUnavailableError: it can't be reached.
    """
    from mcp.shared.exceptions import MCPError

    from squadron.actors.remote.mcp_link import tools_of

    client = await link.client()
    try:
        tools = await tools_of(client)
        documents = await documents_of(client, agent, McpAgent.topic_for)
    except (MCPError, OSError, RuntimeError, ValueError) as error:
        link.drop(client)
        raise ServerUnavailableError(f"{agent}: its tools can't be listed: {error}"[:500]) from None
    found: dict[str, Operation] = {}
    for tool in tools:
        try:
            if is_document(tool.name):
                raise ValueError("it is called as a request of the protocol")
            if str((tool.meta or {}).get(_TOPIC_META, "")).startswith(f"{agent}."):
                # It would be a tool again, and that another topic, without an end.
                raise ValueError("it is a topic of this very agent, which a gateway of ours tells of")
            operation = _operation(agent, tool)
        except (SquadronError, ValueError) as error:
            _log.warning("mcp.tool_left_out", agent=agent, tool=tool.name[:100], why=str(error)[:500])
            continue
        found.setdefault(operation.topic.name, operation)
    for document in documents:
        # A tool of the same name is the server's own word.
        found.setdefault(document.topic.name, document)
    return [found[name] for name in sorted(found)]


def _operation(agent: str, tool: types.Tool) -> Operation:
    schema = foreign_schema(tool.input_schema, tool.name)
    hints = tool.annotations
    topic = McpAgent.topic_for(
        agent,
        tool.name,
        description=foreign_words(tool.description or tool.title or tool.name),
        input_schema=schema,
        output_schema=foreign_schema(tool.output_schema, tool.name),
        tags=("mcp", *doors_tags((tool.meta or {}).get(_DOORS_META))),
        approval=DESTRUCTIVE if hints is not None and hints.destructive_hint else "",
    )
    return Operation(tool.name, topic)


def _went_away(error: Any) -> bool:
    import mcp_types as types

    return error.error.code == types.CONNECTION_CLOSED or error.error.message in _BROKE


def _result(tool: str, result: types.CallToolResult) -> Any:
    """What a tool answered, as data: structured if it is, else its text, else its blocks as MCP has them."""
    import mcp_types as types

    blocks = result.content
    texts = [each.text for each in blocks if isinstance(each, types.TextContent)]
    if result.is_error:
        raise Terminal(("\n".join(texts) or f"{tool} failed, and did not say why")[:4000])
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(blocks):
        return "\n".join(texts)
    return {"content": [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in blocks]}
