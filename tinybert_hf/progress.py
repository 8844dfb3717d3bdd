"""Progress bars: a moving bar in a terminal or a notebook, a line now and then in a log."""

import sys
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left{postfix}"


class Lines:
    """Standard error for a bar that does not move: what tqdm draws becomes a whole line."""

    def write(self, text: str) -> None:
        if text.strip():  # tqdm also wipes out what it drew
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(**options: Any) -> std.tqdm:
    """`tqdm`; where standard error is no terminal, it writes a line every 30 seconds."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    if not in_notebook and not sys.stderr.isatty():
        options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), SECONDS_BETWEEN_LINES)
        options |= {"miniters": 1, "bar_format": LINE, "dynamic_ncols": False, "leave": False, "file": Lines()}
    return tqdm(**options)
