"""The command line: `tinybert COMMAND`, the same as `python -m tinybert_hf COMMAND`.

Each command imports what it needs inside its function, so that `--help` is answered at once, without torch.
"""

import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnusedCliTokensError
from rich.console import Console

from .. import __version__
from ..errors import InputError
from . import convert, evaluate, index, mine, publish, recipes, search, serve, train
from .terminal import HelpFormatter, last_one_counts

app = App(
    name="tinybert",
    help="""A small BERT encoder for semantic search: train it, measure it, publish it, search with it.

    tinybert recipes                                          # training runs that are ready to start
    tinybert train retrieval minilm --data pairs.csv          # two columns: query, answer
    tinybert search --model outputs/minilm-retrieval --query "undo a commit" --chunks passages.txt

Each command explains its flags: tinybert train retrieval --help.""",
    version=__version__,
    name_transform=str,  # names keep their underscores
    default_parameter=Parameter(
        name_transform=str,
        consume_multiple=1,  # --matryoshka_dims 64 128
        negative=(),
        allow_repeating=True,  # the last one counts
        show_default=lambda value: None if value is False else " ".join(value) if isinstance(value, list) else value,
    ),
    config=last_one_counts,
    help_formatter=HelpFormatter(),
    suppress_keyboard_interrupt=False,
)
app.command(train.app)
app.command(evaluate.evaluate, sort_key=2)
app.command(mine.mine, sort_key=3)
app.command(publish.publish, sort_key=4)
app.command(search.search, sort_key=5)
app.command(index.app)
app.command(serve.serve, sort_key=7)
app.command(serve.mcp, sort_key=8)
app.command(convert.convert, sort_key=9)
app.command(recipes.recipes, sort_key=10, usage="tinybert recipes [NAME]")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. What the user can mend ends it with one line and a status; a bug keeps its traceback.

    The status is 2 where the command line itself is wrong, 130 after Ctrl-C, and otherwise 1.
    """
    logging.getLogger("transformers.modeling_utils").disabled = True  # it reports what `load_model` allows
    # By default torch's threads wait busily, and so take the processor from the very threads that they wait for as soon as
    # another program needs a core. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        options: dict[str, Any] = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
        app(sys.argv[1:] if argv is None else argv, console=Console(), **options)
        sys.stdout.flush()
    except CycloptsError as error:
        surplus = error.unused_tokens if isinstance(error, UnusedCliTokensError) else None
        problem = f"Nothing is expected at {surplus[0]!r}." if surplus else error
        fail(f"{problem} See: {' '.join(['tinybert', *(error.command_chain or ())])} --help", 2)
    except InputError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno is None:  # of a library
            raise
        try:
            sys.stdout.flush()
        except OSError:  # it is what failed: keep Python from writing the rest of it at exit, and failing again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader has seen enough, as in `tinybert ... | head`
            sys.exit(1)
        fail(str(error), 1)


def fail(message: str, status: int) -> None:
    """Say in one line what is wrong, and end."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
