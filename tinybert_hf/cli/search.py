"""tinybert search: the best lines of a file."""

from pathlib import Path

from ..errors import InputError
from ..reading import Written, read_rows
from .terminal import AnyText, hide_loading, print_hits


def search(
    *,
    model: str,
    query: AnyText,
    chunks: AnyText,
    encoding: str | None = None,
    top_k: int = 3,
    rerank: int | None = None,
    highlight: bool = False,
    json: bool = False,
) -> None:
    """Print the lines of a file that answer a query best.

        tinybert search --model outputs/retrieval --query "undo a commit" --chunks passages.txt
        cat notes/*.txt | tinybert search --model OWNER/NAME --query "undo a commit" --chunks - --json

    For more than about 10,000 lines, or for many searches, make an index: tinybert index --help.

    Args:
        model: Folder or Hub id: a model of ours, or another encoder, such as sentence-transformers/all-MiniLM-L6-v2.
        query: The question, or a few words.
        chunks: A text file with one text a line, or - for standard input. Blank lines are skipped.
        encoding: Encoding of the file, such as cp1252. By default UTF-8, or what a byte order mark says.
        top_k: How many lines to print.
        rerank: Rank this many of the best again, token by token; 0 turns this off. By default, as the model says.
        highlight: Show the sentence that answers in bold. JSON has its position instead, as highlight: [start, end].
        json: Print a JSON list of {index, score, text}.
    """
    rows = read_rows(Path(chunks), written=Written(encoding), suffix=".txt")
    texts = [text for row in rows if (text := row["text"].strip())]
    if not texts:
        raise InputError(f"{chunks} has no text.")
    hide_loading()
    from ..encoding import load_search_pipeline

    pipeline = load_search_pipeline(model)
    try:
        results = pipeline(query, texts, top_k, rerank, highlight)
    except ValueError as error:  # of its checks: it travels with models, and knows no InputError
        raise InputError(str(error)) from error
    print_hits(results, json)
