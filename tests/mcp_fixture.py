"""The agent that MCP's conformance kit expects behind a server: tools, prompts and resources by its names."""

from __future__ import annotations

import asyncio
from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.runtime.running.context import Context

#: One pixel, and a wave without a sample.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
TEXT = "This is a simple text response for testing."
Client = dict[str, Any]


def _text(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


def _resource(uri: str, mime: str, text: str) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": text}}


def _form(message: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def _name_form() -> dict[str, Any]:
    return _form("What is your name?", {"name": {"type": "string"}}, ["name"])


def _sampling(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": {"type": "text", "text": prompt}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 100}}


def _wants(requests: dict[str, Any], state: str | None = None) -> dict[str, Any]:
    wanted: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
    return wanted | ({"requestState": state} if state is not None else {})


def _answer(client: Client, key: str) -> Any:
    return client.get("inputResponses", {}).get(key)


def _named(client: Client, key: str = "user_name") -> str | None:
    """The name that a form was filled with, if it was filled as it should be."""
    answer = _answer(client, key)
    name = answer.get("content", {}).get("name") if isinstance(answer, dict) else None
    return name if isinstance(name, str) else None


class Conformance(Agent):
    """Answers as the kit wants."""

    name = "conformance"

    # --- tools -----------------------------------------------------------------------------------------

    @topic("kit.text", description="Simple text.", tags=["mcp:tool=test_simple_text"])
    async def simple_text(self) -> Any:
        return _text(TEXT)

    @topic("kit.image", description="An image.", tags=["mcp:tool=test_image_content"])
    async def image(self) -> Any:
        return {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}]}

    @topic("kit.audio", description="A sound.", tags=["mcp:tool=test_audio_content"])
    async def audio(self) -> Any:
        return {"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}

    @topic("kit.embedded", description="A resource.", tags=["mcp:tool=test_embedded_resource"])
    async def embedded(self) -> Any:
        return {"content": [_resource("test://embedded-resource", "text/plain", "Embedded.")]}

    @topic("kit.mixed", description="Several.", tags=["mcp:tool=test_multiple_content_types"])
    async def mixed(self) -> Any:
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        resource = _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
        return {"content": [{"type": "text", "text": "Multiple content types test:"}, image, resource]}

    @topic("kit.log", description="Logs.", tags=["mcp:tool=test_tool_with_logging", "mcp:log"])
    async def log(self, ctx: Context) -> Any:
        for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.emit({"level": "info", "data": said})
            await asyncio.sleep(0.05)
        return _text("Logged.")

    @topic("kit.quiet", description="Logs, if wanted.", tags=["mcp:tool=test_logging_tool", "mcp:log"])
    async def quiet(self, ctx: Context) -> Any:
        await ctx.emit({"level": "info", "data": "Said only where it is wanted"})
        return _text("Logged.")

    @topic("kit.error", description="Fails.", tags=["mcp:tool=test_error_handling"], max_attempts=1)
    async def error(self) -> Any:
        raise ValueError("This tool intentionally returns an error for testing")

    @topic("kit.progress", description="Counts.", tags=["mcp:tool=test_tool_with_progress"])
    async def progress(self, ctx: Context) -> Any:
        for n in (0, 50, 100):
            await ctx.emit(f"Completed {n} of 100")
            await asyncio.sleep(0.05)
        return _text("Done.")

    @topic("kit.sample", description="Asks a model.", tags=["mcp:tool=test_sampling"])
    async def sample(self, prompt: str, mcp_client: Client) -> Any:
        answer = _answer(mcp_client, "completion")
        if answer is None:
            return _wants({"completion": _sampling(prompt)})
        return _text(f"LLM response: {answer['content']['text']}")

    @topic("kit.elicit", description="Asks a person.", tags=["mcp:tool=test_elicitation"])
    async def elicit(self, message: str, mcp_client: Client) -> Any:
        fields = {"username": {"type": "string"}, "email": {"type": "string"}}
        answer = _answer(mcp_client, "who")
        if answer is None:
            return _wants({"who": _form(message, fields, ["username", "email"])})
        return _text(f"User response: {answer}")

    @topic("kit.defaults", description="Has defaults.", tags=["mcp:tool=test_elicitation_sep1034_defaults"])
    async def defaults(self, mcp_client: Client) -> Any:
        fields = {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": True},
        }
        answer = _answer(mcp_client, "form")
        if answer is None:
            return _wants({"form": _form("Check these.", fields, [])})
        return _text(f"Elicitation completed: {answer}")

    @topic("kit.enums", description="Has choices.", tags=["mcp:tool=test_elicitation_sep1330_enums"])
    async def enums(self, mcp_client: Client) -> Any:
        options = ["option1", "option2", "option3"]
        titled = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in ((1, "First"), (2, "Second"))]
        fields = {
            "untitledSingle": {"type": "string", "enum": options},
            "titledSingle": {"type": "string", "oneOf": [*titled, {"const": "value3", "title": "Third Option"}]},
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
            "titledMulti": {
                "type": "array",
                "items": {"anyOf": [*titled, {"const": "value3", "title": "Third Choice"}]},
            },
        }
        answer = _answer(mcp_client, "form")
        return _wants({"form": _form("Choose.", fields, [])}) if answer is None else _text(f"Completed: {answer}")

    @topic("kit.stream", description="Asks on a stream.", tags=["mcp:tool=test_streaming_elicitation"])
    async def streaming(self, mcp_client: Client) -> Any:
        return _wants({"user_name": _name_form()}) if _named(mcp_client) is None else _text("Heard.")

    @topic("kit.capable", description="Needs a model.", tags=["mcp:tool=test_missing_capability"])
    async def capable(self, mcp_client: Client) -> Any:
        return _wants({"completion": _sampling("Hello?")})

    @topic("kit.change", description="Changes the tools.", tags=["mcp:tool=test_trigger_tool_change"])
    async def tool_change(self, ctx: Context) -> Any:
        return _text("Changed.")

    @topic("kit.rephrase", description="Changes the prompts.", tags=["mcp:tool=test_trigger_prompt_change"])
    async def prompt_change(self, ctx: Context) -> Any:
        return _text("Changed.")

    # --- durable tasks -----------------------------------------------------------------------------------

    @topic("kit.greet", description="Greets.", tags=["mcp:tool=greet"])
    async def greet(self, name: str) -> Any:
        return _text(f"Hello, {name}!")

    @topic("kit.compute", description="Takes its time.", tags=["mcp:tool=slow_compute"], run_timeout_s=90)
    async def compute(self, seconds: float, label: str = "") -> Any:
        await asyncio.sleep(seconds)
        return _text(f"Computed {label} in {seconds} s.")

    @topic("kit.failing", description="Fails late.", tags=["mcp:tool=failing_job"], max_attempts=1)
    async def failing(self) -> Any:
        await asyncio.sleep(1)
        raise ValueError("This job always fails")

    @topic("kit.delete", description="Asks first.", tags=["mcp:tool=confirm_delete"], run_timeout_s=60)
    async def delete(self, filename: str, ctx: Context) -> Any:
        schema = {"type": "object", "properties": {"confirm": {"type": "boolean"}}, "required": ["confirm"]}
        reply = await ctx.ask_person(f"Delete {filename}?", schema=schema, within_s=30)
        return _text(f"{'Deleted' if reply.accepted and reply.content['confirm'] else 'Kept'} {filename}.")

    # --- what is wanted of the client --------------------------------------------------------------------

    @topic("kit.who", description="Who?", tags=["mcp:tool=test_input_required_result_elicitation"])
    async def who(self, mcp_client: Client) -> Any:
        name = _named(mcp_client)
        return _wants({"user_name": _name_form()}) if name is None else _text(f"Hello, {name}!")

    @topic("kit.capital", description="Where?", tags=["mcp:tool=test_input_required_result_sampling"])
    async def capital(self, mcp_client: Client) -> Any:
        answer = _answer(mcp_client, "capital_question")
        if answer is None:
            return _wants({"capital_question": _sampling("What is the capital of France?")})
        return _text(answer["content"]["text"])

    @topic("kit.roots", description="Roots.", tags=["mcp:tool=test_input_required_result_list_roots"])
    async def roots(self, mcp_client: Client) -> Any:
        answer = _answer(mcp_client, "client_roots")
        if answer is None:
            return _wants({"client_roots": {"method": "roots/list", "params": {}}})
        return _text(f"Roots: {[each['uri'] for each in answer['roots']]}")

    @topic("kit.state", description="Has a state.", tags=["mcp:tool=test_input_required_result_request_state"])
    async def state(self, mcp_client: Client) -> Any:
        if mcp_client.get("requestState") == "begun" and _answer(mcp_client, "confirm"):
            return _text("state-ok")
        form = _form("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])
        return _wants({"confirm": form}, "begun")

    @topic("kit.several", description="Several.", tags=["mcp:tool=test_input_required_result_multiple_inputs"])
    async def several(self, mcp_client: Client) -> Any:
        requests = {
            "user_name": _name_form(),
            "greeting": _sampling("Generate a greeting"),
            "client_roots": {"method": "roots/list", "params": {}},
        }
        missing = {key: each for key, each in requests.items() if _answer(mcp_client, key) is None}
        return _wants(missing, "several") if missing else _text("All there.")

    @topic("kit.rounds", description="In rounds.", tags=["mcp:tool=test_input_required_result_multi_round"])
    async def rounds(self, mcp_client: Client) -> Any:
        state = mcp_client.get("requestState")
        if state == "two" and _answer(mcp_client, "step2"):
            return _text("Done in two rounds.")
        if state == "one" and _answer(mcp_client, "step1"):
            color = _form("Step 2: What is your favorite color?", {"color": {"type": "string"}}, ["color"])
            return _wants({"step2": color}, "two")
        return _wants(
            {"step1": _form("Step 1: What is your name?", {"name": {"type": "string"}}, ["name"])}, "one"
        )

    @topic("kit.sealed", description="Sealed.", tags=["mcp:tool=test_input_required_result_tampered_state"])
    async def sealed(self, mcp_client: Client) -> Any:
        if mcp_client.get("requestState") == "sealed":
            return _text("As it was.")
        return _wants({"confirm": _form("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])}, "sealed")

    @topic("kit.able", description="What it can.", tags=["mcp:tool=test_input_required_result_capabilities"])
    async def able(self, mcp_client: Client) -> Any:
        can = mcp_client["capabilities"]
        wishes = {"elicitation": {"user_name": _name_form()}, "sampling": {"greeting": _sampling("Hello?")}}
        requests = {key: each for name, wish in wishes.items() if name in can for key, each in wish.items()}
        return _wants(requests) if requests else _text("Nothing to ask.")

    # --- prompts and resources ---------------------------------------------------------------------------

    @topic("kit.prompt", description="A prompt.", tags=["mcp:prompt=test_simple_prompt"])
    async def prompt(self) -> str:
        return "This is a simple prompt for testing."

    @topic("kit.arguments", description="A prompt.", tags=["mcp:prompt=test_prompt_with_arguments"])
    async def arguments(self, arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @topic("kit.embed", description="A prompt.", tags=["mcp:prompt=test_prompt_with_embedded_resource"])
    async def embed(self, resourceUri: str) -> Any:  # noqa: N803 - the kit's name
        resource = _resource(resourceUri, "text/plain", "Embedded resource content for testing.")
        text = {"type": "text", "text": "Please process the embedded resource above."}
        return {"messages": [{"role": "user", "content": resource}, {"role": "user", "content": text}]}

    @topic("kit.picture", description="A prompt.", tags=["mcp:prompt=test_prompt_with_image"])
    async def picture(self) -> Any:
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        text = {"type": "text", "text": "Please analyze the image above."}
        return {"messages": [{"role": "user", "content": image}, {"role": "user", "content": text}]}

    @topic("kit.asking", description="A prompt.", tags=["mcp:prompt=test_input_required_result_prompt"])
    async def asking(self, mcp_client: Client) -> Any:
        if _answer(mcp_client, "user_context") is None:
            form = _form("What context should the prompt use?", {"context": {"type": "string"}}, ["context"])
            return _wants({"user_context": form})
        return "A prompt with your context."

    @topic("kit.static", description="Text.", tags=["mcp:resource=test://static-text", "mcp:mime=text/plain"])
    async def static_text(self) -> str:
        return "This is the content of the static text resource."

    @topic("kit.binary", description="An image.", tags=["mcp:resource=test://static-binary", "mcp:mime=image/png"])
    async def static_binary(self) -> Any:
        return {"blob": PNG}

    @topic("kit.watched", description="Watched.", tags=["mcp:resource=test://watched-resource"])
    async def watched(self) -> str:
        return "Watched."

    @topic(
        "kit.template",
        description="A template.",
        tags=["mcp:resource=test://template/{id}/data", "mcp:mime=application/json"],
    )
    async def template(self, id: str) -> Any:
        return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}
