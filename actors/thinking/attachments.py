"""Attachments as the providers take them: images, PDFs, and files of text."""

from __future__ import annotations

import base64
from typing import Any, Literal

from squadron.actors.thinking.model import Attachment, ModelTurn
from squadron.runtime.errors import ModelError

#: The kind of part in which chat completions have an image, and of the item in which Responses do.
IMAGE_URL, IMAGE_CALL = "image_url", "image_generation_call"

#: Types that are text, though their names don't say so.
_TEXTS = frozenset({"application/json", "application/xml", "application/yaml", "application/x-ndjson"})


def images_of(turn: ModelTurn) -> tuple[Attachment, ...]:
    """The images that a model made in this turn, from its blocks.

    Chat completions have them with servers whose models draw (OpenRouter), and Responses where a server offers
    that tool by itself; Claude makes none.
    """
    return tuple(filter(None, map(_image, turn.blocks)))


def _image(block: dict[str, Any]) -> Attachment | None:
    if block.get("type") == IMAGE_CALL and isinstance(block.get("result"), str):
        return Attachment(f"image/{block.get('output_format') or 'png'}", block["result"])
    if block.get("type") != IMAGE_URL or not isinstance(block.get(IMAGE_URL), dict):
        return None
    url = str(block[IMAGE_URL].get("url", ""))
    head, _, data = url.partition(";base64,")
    return Attachment(head.removeprefix("data:"), data) if data else Attachment("image/*", url=url)


def kind_of(attachment: Attachment) -> Literal["image", "pdf", "text"]:
    """What a provider is to take it for.

    Raises:
        ModelError: it is nothing that models read, or holds neither data nor an address.
    """
    media = attachment.media_type.partition(";")[0].strip().lower()
    if bool(attachment.data) == bool(attachment.url):
        raise _refused(attachment, "needs either data or a url", "set one of the two")
    if media.startswith("image/"):
        return "image"
    if media == "application/pdf":
        return "pdf"
    if media.startswith("text/") or media in _TEXTS:
        if attachment.url:
            raise _refused(attachment, "is a text behind a url, which no provider fetches", "send its data")
        return "text"
    raise _refused(attachment, "is nothing that models read", "send an image, a PDF or text")


def text_of(attachment: Attachment) -> str:
    """What stands in a file of text; what is no UTF-8 in it becomes U+FFFD.

    Raises:
        ModelError: its data is not base64.
    """
    try:
        return base64.b64decode(attachment.data, validate=True).decode(errors="replace")
    except ValueError:
        raise _refused(attachment, "has data that is not base64", "encode its bytes in base64") from None


def titled(attachment: Attachment) -> str:
    """A file of text with its name, for wires that have no place for files of text."""
    return f"{name_of(attachment)}:\n{text_of(attachment)}"


def address_of(attachment: Attachment) -> str:
    """Its url, else its data as one."""
    return attachment.url or f"data:{attachment.media_type};base64,{attachment.data}"


def name_of(attachment: Attachment) -> str:
    """Its name, or what it is; some providers take no file without a name."""
    return attachment.name or f"attachment.{attachment.media_type.rpartition('/')[2]}"


def _refused(attachment: Attachment, what: str, hint: str) -> ModelError:
    shown = f"the attachment {attachment.name!r} ({attachment.media_type})"
    return ModelError(f"{shown} {what}", hint=hint)
