"""Attachments as the providers take them: images, PDFs, and files of text."""

from __future__ import annotations

import base64
from typing import Literal

from squadron.actors.thinking.model import Attachment
from squadron.runtime.errors import ModelError

#: Types that are text, though their names don't say so.
_TEXTS = frozenset({"application/json", "application/xml", "application/yaml", "application/x-ndjson"})


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
