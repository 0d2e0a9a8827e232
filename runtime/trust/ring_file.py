"""A key ring in a file that only its owner reads."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from squadron.runtime.errors import ConfigError
from squadron.runtime.trust.sealing import KeyRing


def ring_in(path: Path) -> KeyRing:
    """The ring that the file holds, made with a new key if there is none; of several who make it, one does.

    Raises:
        ConfigError: it can't be read or written, holds no key ring, or others may read it.
    """
    if not path.exists():
        _write(path, KeyRing.create(), anew=True)
    return read_ring(path)


def read_ring(path: Path) -> KeyRing:
    """The ring that the file holds.

    Raises:
        ConfigError: it can't be read, holds no key ring, or others may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others may read the keys in {path}", hint=f"chmod 600 {path}")
        return KeyRing.of_wire(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no keys can be read from {path}: {type(error).__name__}") from None


def rotate_ring(path: Path) -> KeyRing:
    """Put a new key in front; the file holds the old ring or the new one, whenever this is interrupted.

    Raises:
        ConfigError: as `read_ring`.
    """
    ring = read_ring(path).rotated()
    _write(path, ring, anew=False)
    return ring


def _write(path: Path, ring: KeyRing, *, anew: bool) -> None:
    try:
        _store(path, ring, anew=anew)
    except OSError as error:
        hint = "who makes keys needs a place for them, see SQUADRON_HOME"
        raise ConfigError(f"no keys can be written to {path}: {type(error).__name__}", hint=hint) from None


def _store(path: Path, ring: KeyRing, *, anew: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # 0600 from the start.
    descriptor, beside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(ring.to_wire()).encode())
            file.flush()
            os.fsync(file.fileno())
        if not anew:
            Path(beside).replace(path)
            return
        try:
            # Whole, and only if nobody was first.
            os.link(beside, path)
        except FileExistsError:
            return
    finally:
        Path(beside).unlink(missing_ok=True)
