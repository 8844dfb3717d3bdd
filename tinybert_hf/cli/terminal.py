"""What the commands share: how help looks, the log, and JSON."""

import json as json_
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, NameRenderer, PanelSpec
from rich.box import Box
from rich.console import Console, ConsoleOptions

from ..errors import InputError

# A value that may begin with a dash: standard input, or a question about a flag.
AnyText = Annotated[str, Parameter(allow_leading_hyphen=True)]

LONGEST_NAME = 31  # columns of help; the type of a longer one's value stands below it


class HelpFormatter(DefaultFormatter):
    """cyclopts's help without boxes, which a log or a search in the text would trip over."""

    def __init__(self) -> None:
        names, descriptions = NameRenderer(max_width=LONGEST_NAME), DescriptionRenderer()
        super().__init__(
            panel_spec=PanelSpec(box=Box("    \n" * 8), padding=(0, 3)),
            column_specs=(ColumnSpec(renderer=names), ColumnSpec(renderer=descriptions, overflow="fold")),
        )

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print the docstring as it is written: its examples are to be copied."""
        source = getattr(description, "primary_renderable", description)
        text = getattr(source, "markup", None) or getattr(source, "plain", None) or ""
        # docstring_parser takes the indentation away from the line after the summary.
        text = text.rstrip().replace("\n\ntinybert ", "\n\n    tinybert ", 1)
        console.print(f"{text}\n", markup=False, highlight=False, soft_wrap=True)


def last_one_counts(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Of a list that is given twice, keep the last one, as cyclopts does with single values."""
    for argument in arguments:
        firsts = [position for position, token in enumerate(argument.tokens) if token.keyword and token.index == 0]
        if len(firsts) > 1:
            argument.tokens = argument.tokens[firsts[-1] :]


def log_progress() -> None:
    """Show what the package reports, on standard error. For commands that take a while."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tinybert_hf").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own


def hide_loading() -> None:
    """No progress bars for the loading of a small model: the answer is what the user waits for."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def print_hits(hits: Sequence[Mapping[str, Any]], json: bool) -> None:
    """Print the results of a search: a list for people, with what is highlighted in bold on a terminal, or JSON."""
    if json:
        print(to_json(hits))
        return
    for rank, hit in enumerate(hits, start=1):
        name = f"{hit['id']}: " if "id" in hit else ""
        text, (start, end) = hit["text"], hit.get("highlight", (0, 0))
        if start < end and sys.stdout.isatty():
            text = f"{text[:start]}\033[1m{text[start:end]}\033[0m{text[end:]}"
        print(f"{rank:3d}. {hit['score']:.3f}  {name}{text}")


def to_json(value: Any, indent: int | None = None) -> str:
    """Raises: InputError: if a number is not finite, for which JSON has no word."""
    try:
        return json_.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        raise InputError("A result is not a number. The model's weights must be damaged.") from error
