"""The training and held-out rows of stage two: pairs of a query and its answer, or documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data import COMPRESSIONS, FILE_READERS, Split, describe_data, hold_out, load_data, select_columns
from ..documents import pairs_from_documents, read_documents
from ..passages import find_files, import_library, read_files
from .arguments import RetrievalArguments


def load_pairs(arguments: RetrievalArguments) -> Split:
    """Rows with the columns `query`, `answer`, and `negative_0`, `negative_1`, ... where there are any.

    Of documents, the rows to train on have `head` and `body` (`documents.read_documents`). Raises: InputError: if the data
    cannot be read, lacks a column, or has too few rows.
    """
    columns = {"query": arguments.query_column, "answer": arguments.answer_column}
    flags = {"query": "query_column", "answer": "answer_column"}
    for i, column in enumerate(arguments.negative_columns or []):
        columns[f"negative_{i}"], flags[f"negative_{i}"] = column, "negative_columns"

    def read(data: Any, split: str) -> Dataset:
        rows = load_data(data, arguments.data_config, split, arguments.data_revision)
        return select_columns(rows, columns, f"{describe_data(data)} ({split})", flags)

    if arguments.documents is not None:
        return load_documents(arguments, read)
    train = read(arguments.data, arguments.data_split)
    if source := arguments.evaluation_source:
        return Split(train, read(*source))
    return hold_out(train, arguments.eval_size, arguments.seed, by=["query", "answer"])


def load_documents(arguments: RetrievalArguments, read: Callable[[Any, str], Dataset]) -> Split:
    """Documents to train on; to measure on, the pairs of `--eval_data` or heads and bodies of documents held out."""
    columns, flags = {"text": arguments.text_column}, {"text": "text_column"}
    if arguments.title_column:
        columns["title"], flags["title"] = arguments.title_column, "title_column"
    folder = Path(arguments.documents) if isinstance(arguments.documents, str | Path) else Path("no folder")
    data_suffixes = {*FILE_READERS, *COMPRESSIONS}
    if folder.is_dir() and not any(data_suffixes & {*path.suffixes} for path in folder.rglob("*")):
        splitter = import_library("semantic_text_splitter").MarkdownSplitter(1_000)  # characters, some 250 tokens
        passages = [passage for passages in read_files(find_files([folder]), splitter) for passage in passages]
        rows, columns = Dataset.from_list(passages), {"text": "text", "title": "title"}
    else:
        rows = load_data(arguments.documents, arguments.data_config, arguments.data_split, arguments.data_revision)
    documents = read_documents(rows, columns, describe_data(arguments.documents), flags)
    if arguments.eval_data is not None and (source := arguments.evaluation_source):
        return Split(documents, read(*source))
    train, held_out = hold_out(documents, arguments.eval_size, arguments.seed, by=["body"])
    return Split(train, pairs_from_documents(held_out))
