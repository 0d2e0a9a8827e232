"""An A2A agent of somebody else, made with the SDK as its samples are: `python -m tests.a2a_neighbour PORT`.

What happens is written to the file that `NEIGHBOUR_TRACE` names. `--plain` has no streams.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvicorn
from a2a.helpers.proto_helpers import get_message_text, new_data_part, new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import a2a_pb2 as pb
from starlette.applications import Starlette

TRACE = Path(os.environ.get("NEIGHBOUR_TRACE", os.devnull))


def note(line: str) -> None:
    with TRACE.open("a") as file:
        file.write(f"{line}\n")


class Neighbour(AgentExecutor):
    """Does what the first word says."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message is not None
        note(f"called {os.getpid()} {context.get_user_input()} {context.message.message_id}")
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        text = get_message_text(context.message)
        word, _, rest = text.partition(" ")
        if context.current_task is not None:
            word, rest = "echo", f"answered {text}"
        await updater.start_work()
        match word:
            case "count":
                for number in range(int(rest)):
                    part = new_text_part(f"{number},")
                    await updater.add_artifact([part], artifact_id="a", append=number > 0)
                await updater.complete()
            case "ask":
                message = updater.new_agent_message([new_text_part("Which size?")])
                await updater.requires_input(message)
            case "fail":
                await updater.failed(updater.new_agent_message([new_text_part("no ink")]))
            case "data":
                await updater.add_artifact([new_data_part({"n": 3, "half": 0.5})])
                await updater.complete()
            case "wait":
                note(f"waiting {os.getpid()}")
                await asyncio.sleep(3.0 if rest == "short" else 3600)
                await updater.add_artifact([new_text_part("waited")])
                await updater.complete()
            case _:
                await updater.add_artifact([new_text_part(rest or text)])
                await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        note("cancelled")
        await TaskUpdater(event_queue, str(context.task_id), str(context.context_id)).cancel()


def card(url: str, *, streaming: bool) -> pb.AgentCard:
    return pb.AgentCard(
        name="The Neighbour",
        description="Lives next door.",
        version="1",
        supported_interfaces=[
            pb.AgentInterface(url="http://10.255.255.1/rpc", protocol_binding="JSONRPC", protocol_version="1.0"),
            pb.AgentInterface(url=f"{url}/rpc", protocol_binding="JSONRPC", protocol_version="1.0"),
            pb.AgentInterface(url=f"{url}/rest", protocol_binding="HTTP+JSON", protocol_version="1.0"),
        ],
        capabilities=pb.AgentCapabilities(streaming=streaming),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[
            pb.AgentSkill(id="talk", name="Talk", description="Does as it is told.", examples=["hi"]),
            pb.AgentSkill(id="draw.it", name="Draw", description="Takes pictures.", input_modes=["image/png"]),
        ],
    )


def main() -> None:
    port = int(sys.argv[1])
    note(f"started {os.getpid()}")
    made = card(f"http://127.0.0.1:{port}", streaming="--plain" not in sys.argv)
    handler = DefaultRequestHandler(agent_executor=Neighbour(), task_store=InMemoryTaskStore(), agent_card=made)
    routes = [
        *create_agent_card_routes(made),
        *create_jsonrpc_routes(handler, "/rpc"),
        *create_rest_routes(handler, path_prefix="/rest"),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
