"""Progress bars: a moving bar in a terminal or a notebook, a line now and then in a log."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import std
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30


class LineBar(std.tqdm):
    """A `tqdm` that writes a whole line every 30 seconds."""

    def __init__(self, **options: Any) -> None:
        self.written = time.monotonic()
        line = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left{postfix}"
        options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), SECONDS_BETWEEN_LINES)
        super().__init__(**options | {"miniters": 1, "bar_format": line, "dynamic_ncols": False, "leave": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if it is time. tqdm also asks for one around every line of the log."""
        if time.monotonic() - self.written >= SECONDS_BETWEEN_LINES:
            self.written = time.monotonic()
            super().display(msg, pos)

    def clear(self, nolock: bool = False) -> None:
        """Nothing: a line that was written stays. tqdm would go back to its beginning around every line of the log."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def print_line(line: str) -> None:
            if line.strip():
                file.write(f"{line}\n")
                file.flush()

        return print_line


def progress_bar(**options: Any) -> std.tqdm:
    """`tqdm`, or where standard error is no terminal, its `LineBar`."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return tqdm(**options) if in_notebook or sys.stderr.isatty() else LineBar(**options)
