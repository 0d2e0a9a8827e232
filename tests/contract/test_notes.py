"""Notes: kept in few, found by their words, forgotten in time, the same for all replicas of an agent."""

from __future__ import annotations

import asyncio
import re

import pytest

from squadron.actors.thinking.notes import MOST_CHARS, MOST_FOUND, MOST_NOTES, NOTE_LIFE_S, NOTE_TOOLS, Notes
from squadron.actors.thinking.shapes import InputShape
from squadron.runtime.errors import InvalidInputError
from tests.contract.conftest import Peer, World


def notes_of(peer: Peer, scope: str = "talk") -> Notes:
    return Notes(peer.lite, peer.subjects.lite("notes-clerk", scope), peer.clock.time)


@pytest.fixture
def notes(peer: Peer) -> Notes:
    return notes_of(peer)


async def test_a_note_is_found_by_its_words_and_tags_from_any_replica(notes: Notes, world: World) -> None:
    await notes.save("Ada pays in euros, by bank transfer.", ["billing"])
    await notes.save("The staging server is rebooted on Sundays.", ["ops", "Servers "])
    other = notes_of(await world.join("other"))
    assert [n.text for n in await other.find("which currency does Ada pay?")] == [
        "Ada pays in euros, by bank transfer."
    ]
    assert [n.tags for n in await other.find(tags=["servers"])] == [("ops", "servers")]
    assert [n.text[:3] for n in await other.find()] == ["The", "Ada"]
    assert await other.find("bicycles") == []
    assert await other.find("euros", ["ops"]) == []


async def test_each_scope_has_its_own(notes: Notes, peer: Peer) -> None:
    await notes.save("a")
    assert await notes_of(peer, "another").find() == []


async def test_the_same_text_is_one_note(notes: Notes) -> None:
    first = await notes.save("Ada pays in euros.", ["x"])
    assert await notes.save(" Ada pays in euros. ", ["y"]) == first
    assert [(n.id, n.tags) for n in await notes.find()] == [(first, ("y",))]


async def test_what_is_forgotten_is_gone_from_the_server_too(notes: Notes, peer: Peer) -> None:
    id = await notes.save("the secret of Ada")
    await notes.save("another")
    await notes.forget(id)
    assert [n.text for n in await notes.find()] == ["another"]
    kept = [entry.data async for entry in peer.lite.read(peer.subjects.lite("notes-clerk", "talk"))]
    assert len(kept) == 1
    assert b"secret" not in kept[0]
    with pytest.raises(InvalidInputError, match="no note"):
        await notes.forget(id)


async def test_replicas_that_save_at_once_lose_nothing(notes: Notes, world: World) -> None:
    others = [notes_of(await world.join(f"r{n}")) for n in range(4)]
    await asyncio.gather(*(each.save(f"note {n} of {k}") for k, each in enumerate(others) for n in range(2)))
    assert len(await notes.find()) == 8


async def test_notes_are_few_and_short(notes: Notes) -> None:
    for number in range(MOST_NOTES):
        await notes.save(f"note {number}")
    with pytest.raises(InvalidInputError, match=f"{MOST_NOTES} notes already") as raised:
        await notes.save("one more")
    assert raised.value.field == "text"
    assert "forget" in raised.value.hint
    await notes.save("note 0", ["a known one may be saved again"])
    assert len(await notes.find()) == MOST_FOUND
    for text in ("", " ", "x" * (MOST_CHARS + 1)):
        with pytest.raises(InvalidInputError, match="characters"):
            await notes.save(text)


async def test_a_note_has_a_life_of_its_own(peer: Peer) -> None:
    later_s = 0.0
    notes = Notes(peer.lite, peer.subjects.lite("notes-clerk", "talk"), lambda: peer.clock.time() + later_s)
    await notes.save("old")
    later_s = NOTE_LIFE_S - 60
    await notes.save("new")
    assert [n.text for n in await notes.find()] == ["new", "old"]
    later_s += 120
    assert [n.text for n in await notes.find()] == ["new"]


async def test_as_many_notes_as_may_be_fit_into_one_message(notes: Notes) -> None:
    wide = chr(0x1F600)
    for number in range(MOST_NOTES):
        await notes.save(wide * (MOST_CHARS - 4) + str(number), [wide * 38 + str(k) for k in range(8)])
    assert len(await notes.find()) == MOST_FOUND


@pytest.mark.parametrize("rubbish", [b"", b"{}", b'[{"id": 1}]', b"\xff"])
async def test_what_others_wrote_there_is_no_note_and_no_hindrance(
    notes: Notes, peer: Peer, rubbish: bytes
) -> None:
    await peer.lite.append(peer.subjects.lite("notes-clerk", "talk"), rubbish)
    assert await notes.find() == []
    await notes.save("mine")
    assert [n.text for n in await notes.find()] == ["mine"]


def test_the_tools_are_such_that_providers_take_them() -> None:
    assert [tool.name for tool in NOTE_TOOLS] == ["save_note", "find_notes", "forget_note"]
    for tool in NOTE_TOOLS:
        assert InputShape(tool.input_schema).schema == tool.input_schema
        assert tool.description


async def test_a_model_saves_finds_and_forgets(notes: Notes) -> None:
    told = await notes.call("save_note", {"text": "Ada pays in euros.\n[0; x] and twice", "tags": ["ada"]})
    id = told.removeprefix("Saved as note ").rstrip(".")
    shown = await notes.call("find_notes", {"query": "Ada"})
    # Each note begins a line; none can look like two.
    assert re.fullmatch(rf"\[{id}; 20\d\d-\d\d-\d\d; ada\] Ada pays in euros\.\n    \[0; x\] and twice", shown)
    assert await notes.call("find_notes", {"query": "bicycle"}) == "There are no such notes."
    assert await notes.call("forget_note", {"id": id}) == f"Forgot note {id}."
    assert await notes.call("find_notes", {}) == "There are no such notes."


@pytest.mark.parametrize(
    ("name", "arguments", "field"),
    [
        ("save_note", {}, "text"),
        ("save_note", {"text": ""}, "text"),
        ("save_note", {"text": "x" * (MOST_CHARS + 1)}, "text"),
        ("save_note", {"text": "x", "tags": "billing"}, "tags"),
        ("forget_note", {"id": "nope"}, "id"),
    ],
)
async def test_arguments_that_do_not_fit_name_their_field(
    notes: Notes, name: str, arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await notes.call(name, arguments)
    assert raised.value.field == field
