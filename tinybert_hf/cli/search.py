"""tinybert search: the best lines of a file."""

import sys
from pathlib import Path

from ..errors import InputError, UnreadableError
from .terminal import AnyText, hide_loading, print_hits


def search(
    *,
    model: str,
    query: AnyText,
    chunks: AnyText,
    top_k: int = 3,
    rerank: int | None = None,
    highlight: bool = False,
    json: bool = False,
) -> None:
    """Print the lines of a file that answer a query best.

        tinybert search --model outputs/retrieval --query "undo a commit" --chunks passages.txt
        cat notes/*.txt | tinybert search --model OWNER/NAME --query "undo a commit" --chunks - --json

    For more than some 10,000 lines, or for searching again and again, make an index: tinybert index --help.

    Args:
        model: A folder or a Hub id: a model of ours, or another encoder (as sentence-transformers/all-MiniLM-L6-v2).
        query: The question, or a few words.
        chunks: A text file with one chunk a line, or - for standard input. Blank lines are skipped.
        top_k: How many chunks to print.
        rerank: Rank so many of the best anew by their tokens; 0 leaves it out. Without it, as the model says.
        highlight: Show the sentence that answers in bold, or in JSON as highlight: [start, end].
        json: Print a JSON list of {index, score, text}.
    """
    texts = read_chunks(chunks)
    hide_loading()
    from ..encoding import load_search_pipeline

    pipeline = load_search_pipeline(model)
    try:
        results = pipeline(query, texts, top_k, rerank, highlight)
    except ValueError as error:  # of its checks: it travels with models, and knows no InputError
        raise InputError(str(error)) from error
    print_hits(results, json)


def read_chunks(path: str) -> list[str]:
    """The lines of a file or of standard input (`-`) that are not blank."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"--chunks {path} is no UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
