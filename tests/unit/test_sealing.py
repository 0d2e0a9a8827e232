"""What is sealed opens for whom it is for, where it was sealed for, and for nobody and nowhere else."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import ConfigError, KeyLostError, UnsealedError
from squadron.runtime.trust.sealing import (
    CHUNK_BYTES,
    TAG_BYTES,
    Box,
    KeyRing,
    SealKey,
    bound,
    open_piece,
    open_stream,
    seal_stream,
    unb64,
)

INFO = bound("task", "caller-1")
RING, OTHER = KeyRing([b"a" * 32]), KeyRing([b"b" * 32])


def opened(ring: KeyRing, box: Box, piece: bytes, aad: bytes, info: bytes = INFO) -> bytes:
    return open_piece(ring.unwrap(box.wraps, info), piece, aad)


@given(st.binary(max_size=5_000), st.lists(st.text(), max_size=5))
def test_what_is_sealed_opens_where_it_was_sealed_for(plain: bytes, place: list[str]) -> None:
    box = Box([RING.public], INFO)
    piece = box.seal(plain, bound(*place))
    assert opened(RING, box, piece, bound(*place)) == plain
    assert plain not in piece or len(plain) < 4


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_different_fields_are_never_bound_to_the_same_bytes(one: list[str], other: list[str]) -> None:
    assert (bound(*one) == bound(*other)) == (one == other)


def test_ten_thousand_pieces_that_were_changed_cut_or_moved_open_nowhere() -> None:
    dice = random.Random(12)
    boxes = [Box([RING.public], INFO), Box([RING.public], INFO), Box([OTHER.public], INFO)]
    places = [bound("agents.test.task.a.b", f"task-{number}", "0") for number in range(8)]
    pieces = [[box.seal(f"secret {n}".encode(), place) for n, place in enumerate(places)] for box in boxes]
    opened_all = 0
    for _ in range(10_000):
        box, number = dice.choice(boxes), dice.randrange(8)
        piece, place, info, ring = pieces[boxes.index(box)][number], places[number], INFO, RING
        wraps = dict(box.wraps)
        match dice.choice(("bit", "cut", "longer", "place", "box", "wrap", "info", "kid", "ring", "rubbish")):
            case "bit":
                at = dice.randrange(len(piece))
                piece = piece[:at] + bytes([piece[at] ^ 1 << dice.randrange(8)]) + piece[at + 1 :]
            case "cut":
                piece = piece[: dice.randrange(len(piece))]
            case "longer":
                piece += dice.randbytes(dice.randrange(1, 20))
            case "place":
                place = places[(number + dice.randrange(1, 8)) % 8]
            case "box":
                piece = pieces[(boxes.index(box) + dice.randrange(1, 3)) % 3][number]
            case "wrap":
                kid = next(iter(wraps))
                at = dice.randrange(len(wraps[kid]))
                wraps[kid] = wraps[kid][:at] + dice.choice("AZaz09-_") + wraps[kid][at + 1 :]
                if unb64_or_none(wraps[kid]) == unb64(next(iter(box.wraps.values()))):
                    continue
            case "info":
                info = bound("task", f"caller-{dice.randrange(2, 9)}")
            case "kid":
                wraps = {OTHER.public.kid: next(iter(wraps.values())), RING.public.kid: "AAAA"}
            case "ring":
                ring = KeyRing.create()
            case "rubbish":
                piece = dice.randbytes(dice.randrange(0, 60))
        with pytest.raises(UnsealedError):
            opened_all += bool(open_piece(ring.unwrap(wraps, info), piece, place))
    assert opened_all == 0
    # And none did any harm to what is in order.
    assert opened(RING, boxes[0], pieces[0][3], places[3]) == b"secret 3"


def unb64_or_none(text: str) -> bytes | None:
    try:
        return unb64(text)
    except UnsealedError:
        return None


def test_a_box_never_uses_a_number_twice_and_a_box_opens_for_each_of_its_readers() -> None:
    box = Box([RING.public, OTHER.public], INFO)
    pieces = [box.seal(b"same", b"") for _ in range(1_000)]
    assert len({piece[:12] for piece in pieces}) == 1_000
    assert opened(RING, box, pieces[7], b"") == opened(OTHER, box, pieces[7], b"") == b"same"


def test_old_keys_open_after_a_rotation_and_new_pieces_are_for_the_new_key() -> None:
    before = Box([RING.public], INFO)
    rotated = KeyRing.of_wire(RING.rotated().to_wire())
    after = Box([rotated.public], INFO)
    assert opened(rotated, before, before.seal(b"old", b""), b"") == b"old"
    assert opened(rotated, after, after.seal(b"new", b""), b"") == b"new"
    assert rotated.kids[1:] == RING.kids
    with pytest.raises(KeyLostError, match=rotated.public.kid) as lost:
        RING.unwrap(after.wraps, INFO)
    assert lost.value.kid == rotated.public.kid
    assert pickle.loads(pickle.dumps(lost.value)).kid == rotated.public.kid


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_large_payload_opens_whole_and_not_when_chunks_are_moved_left_out_or_cut(size: int) -> None:
    plain = random.Random(size).randbytes(size)
    key, sealed = seal_stream(plain)
    assert open_stream(key, sealed) == plain
    step, prefix = CHUNK_BYTES + TAG_BYTES, sealed[:7]
    chunks = [sealed[at : at + step] for at in range(7, len(sealed), step)]
    wrong = [sealed[:-1], sealed + b"x", sealed[:5], b"", prefix, prefix + b"".join(chunks[:-1])]
    wrong += [b"\0" * 7 + b"".join(chunks), prefix + b"".join([*chunks, chunks[-1]])]
    if len(chunks) > 1:
        wrong.append(prefix + b"".join([chunks[1], chunks[0], *chunks[2:]]))
    for each in wrong:
        with pytest.raises(UnsealedError):
            open_stream(key, each)
    with pytest.raises(UnsealedError):
        open_stream(b"k" * 32, sealed)


def test_a_ring_shows_and_pickles_no_secret_and_what_is_none_is_refused() -> None:
    assert "YWFh" not in repr(RING)
    assert RING.public.kid in repr(RING)
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(RING)
    for raw in (None, {}, {"keys": []}, {"keys": ["AAAA"]}, {"keys": ["!"]}, []):
        with pytest.raises(ConfigError, match="key ring"):
            KeyRing.of_wire(raw)
    assert SealKey.parse(str(RING.public)) == RING.public
    for text in ("", "AAAA", "é", str(RING.public) + "AA"):
        with pytest.raises(UnsealedError):
            SealKey.parse(text)


def test_who_seals_nothing_loads_nothing() -> None:
    code = (
        "import sys; from squadron.runtime.trust.sealing import KeyRing; KeyRing.create();"
        "print('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
