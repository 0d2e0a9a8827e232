"""The ports of a bus in memory, and their server: public stand-ins, held to the same contract as JetStream.

What they keep dies with the process. They use the real codec: bytes go in, the same bytes come out.
"""

from squadron.bridge.memory.bus import MemoryBus
from squadron.bridge.memory.common import MAX_PAYLOAD_BYTES, LoopClock
from squadron.bridge.memory.events import MemoryEventLog
from squadron.bridge.memory.journal import MemoryJournal
from squadron.bridge.memory.line import Line
from squadron.bridge.memory.queue import MemoryQueue
from squadron.bridge.memory.server import MemoryServer
from squadron.bridge.memory.vault import MemoryVault

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Line",
    "LoopClock",
    "MemoryBus",
    "MemoryEventLog",
    "MemoryJournal",
    "MemoryQueue",
    "MemoryServer",
    "MemoryVault",
]
