"""Images, PDFs and files of text, in what users say and in results, on each wire."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from squadron.actors.thinking.assemble import TurnParts
from squadron.actors.thinking.attachments import images_of
from squadron.actors.thinking.model import Attachment, ChatMessage, ModelTurn, ToolCall
from squadron.actors.thinking.openai_chat import ChatWire
from tests.llm_playing import ANTHROPIC, CHAT, RESPONSES, TIME, TOOLS, TURN, USER, Provider, said
from tests.llm_requests import check_request

APIS = {CHAT: "chat", RESPONSES: "responses", ANTHROPIC: "messages"}
PNG = base64.b64encode(b"\x89PNG").decode()
TEXT = base64.b64encode("Grüezi".encode()).decode()
IMAGE = Attachment("image/png", PNG)
AT_URL = Attachment("image/jpeg", url="https://example.com/a.jpg")
PDF = Attachment("application/pdf", base64.b64encode(b"%PDF-1.7").decode(), name="a.pdf")
NOTES = Attachment("text/markdown; charset=utf-8", TEXT, name="notes.md")
DATA = Attachment("application/json", base64.b64encode(b'{"a": 1}').decode())


@pytest.mark.parametrize("attachment", [IMAGE, AT_URL, PDF, NOTES, DATA], ids=lambda one: one.media_type)
@pytest.mark.parametrize("role", ["user", "tool"])
async def test_attachments_reach_the_model(
    play: Any, provider: Provider, attachment: Attachment, role: str
) -> None:
    played = play([TURN])
    if role == "user":
        chat = [ChatMessage("user", "look", attachments=(attachment,))]
    else:
        calls = (TIME, ToolCall("call_u", "time"))
        results = [ChatMessage("tool", "it", tool_call_id=c.id, attachments=(attachment,)) for c in calls]
        chat = [*USER, ChatMessage("assistant", "", calls), *results]
    assert said(await played.think(chat, TOOLS)) == TURN
    check_request(APIS[provider], played.body)
    told = json.dumps(played.body, ensure_ascii=False)
    expected = "Grüezi" if attachment is NOTES else attachment.url or attachment.data
    if attachment is DATA:
        expected = r"{\"a\": 1}"
    assert expected in told


async def test_an_attachment_alone_is_a_message(play: Any) -> None:
    assert said(await play([TURN]).think([ChatMessage("user", "", attachments=(IMAGE,))])) == TURN


async def test_a_pdf_by_its_url_goes_where_it_is_taken(play: Any, provider: Provider) -> None:
    played = play([TURN])
    chat = [ChatMessage("user", "", attachments=(Attachment("application/pdf", url="https://example.com/a.pdf"),))]
    if provider is CHAT:
        assert "Responses" in (await played.error(chat)).hint
    else:
        assert said(await played.think(chat)) == TURN


@pytest.mark.parametrize(
    ("attachment", "why"),
    [
        (Attachment("application/zip", PNG, name="a.zip"), "nothing that models read"),
        (Attachment("text/plain", "Grüezi!"), "not base64"),
        (Attachment("text/plain", url="https://example.com"), "no provider fetches"),
        (Attachment("image/png"), "either data or a url"),
        (Attachment("image/png", PNG, url="https://example.com"), "either data or a url"),
    ],
)
async def test_what_no_model_reads_is_refused_by_name(play: Any, attachment: Attachment, why: str) -> None:
    played = play([TURN])
    error = await played.error([ChatMessage("user", "look", attachments=(attachment,))])
    assert why in str(error)
    assert attachment.media_type in str(error)
    assert error.hint
    assert error.kind == "request"
    assert played.server.requests == []


async def test_an_image_does_not_count_as_text_where_usage_is_estimated(play: Any) -> None:
    played = play([TURN, TURN], tells_usage=False)
    image = Attachment("image/png", base64.b64encode(bytes(300_000)).decode())
    usage = (await played.think([ChatMessage("user", "look", attachments=(image,))])).usage
    assert usage.input < 1_000
    assert (await played.think([ChatMessage("user", "言" * 3_000)])).usage.input >= 1_000


@pytest.mark.parametrize(
    ("block", "image"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{PNG}"}}, ("image/webp", PNG, "")),
        ({"type": "image_url", "image_url": {"url": AT_URL.url}}, ("image/*", "", AT_URL.url)),
        ({"type": "image_generation_call", "result": PNG, "output_format": "jpeg"}, ("image/jpeg", PNG, "")),
        ({"type": "image_generation_call", "result": None}, None),
        ({"type": "reasoning", "summary": []}, None),
    ],
)
def test_images_that_a_model_made_are_attachments(block: dict[str, Any], image: tuple[str, ...] | None) -> None:
    found = images_of(ModelTurn(blocks=(block,)))
    assert [(one.media_type, one.data, one.url) for one in found] == ([image] if image else [])


def test_images_of_a_chat_server_are_kept() -> None:
    wire, parts = ChatWire(is_official=False), TurnParts(None)
    made = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    for delta in ({"reasoning_content": "I draw."}, {"content": "Here."}, {"images": [made, made]}):
        choice = {"index": 0, "delta": delta, "finish_reason": "stop"}
        wire.read(parts, ChatCompletionChunk.construct(**json.loads(json.dumps({"choices": [choice]}))))
    turn = replace(ModelTurn("Here."), blocks=wire.blocks(parts, ModelTurn("Here.")))
    assert images_of(turn) == (IMAGE, IMAGE)
