"""The console that all commands draw on: what they draw may hold the words of anybody."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from squadron.cli.frame import SPACES, printable


class CleanConsole(Console):
    """Rich's console, but no text on it moves the cursor: Rich takes out BEL and the like, and leaves ESC.

    What Rich itself tells the terminal is no text: colours are put on later, and cursors moved by segments of
    their own.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As Rich's: all that is drawn comes through here, the parts of tables and live panes, too."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, f"\n\t{SPACES}"), segment.style)
