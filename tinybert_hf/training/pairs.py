"""The training and held-out rows of stage two: pairs of a query and its answer, or documents."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..data import FILE_KINDS, Split, data_sources, describe_data, hold_out, load_data, read_columns
from ..documents import pairs_from_documents, read_documents
from ..passages import find_files, import_library, read_files
from ..reading import file_suffix
from .arguments import RetrievalArguments


def load_pairs(arguments: RetrievalArguments) -> Split:
    """Rows with the columns `query`, `answer`, and `negative_0`, `negative_1`, ... where there are any.

    Of documents, the rows to train on have `head` and `body` (`documents.read_documents`). Raises: InputError: if the data
    cannot be read, lacks a column, or has too few rows.
    """
    negatives = {f"negative_{i}": column for i, column in enumerate(arguments.negative_columns or [])}
    columns = {"query": arguments.query_column, "answer": arguments.answer_column, **negatives}
    flags = {"query": "query_column", "answer": "answer_column", **dict.fromkeys(negatives, "negative_columns")}
    unfold = arguments.answer_column if arguments.unfold_answers else None
    read: Callable[..., Dataset] = partial(
        read_columns, columns=columns, flags=flags, unfold=unfold, **arguments.reading
    )
    if arguments.documents is not None:
        return load_documents(arguments, read)
    train = read(arguments.data, split=arguments.data_split)
    if source := arguments.evaluation_source:
        return Split(train, read(source[0], split=source[1]))
    return hold_out(train, arguments.eval_size, arguments.seed, by=["query", "answer"])


def load_documents(arguments: RetrievalArguments, read: Callable[..., Dataset]) -> Split:
    """Documents to train on; to measure on, the pairs of `--eval_data` or heads and bodies of documents held out."""
    columns = {"text": arguments.text_column} | ({"title": arguments.title_column} if arguments.title_column else {})
    flags = {"text": "text_column", "title": "title_column"}
    parts = []
    for one in data_sources(arguments.documents):
        found = columns
        if is_folder_of_documents(one):
            splitter = import_library("semantic_text_splitter").MarkdownSplitter(1_000)  # characters, some 250 tokens
            passages = [passage for passages in read_files(find_files([one]), splitter) for passage in passages]
            rows, found = Dataset.from_list(passages), {"text": "text", "title": "title"}
        else:
            rows = load_data(one, split=arguments.data_split, texts=list(columns.values()), **arguments.reading)
        parts.append(read_documents(rows, found, describe_data(one), flags))
    documents = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    if arguments.eval_data is not None and (source := arguments.evaluation_source):
        return Split(documents, read(source[0], split=source[1]))
    train, held_out = hold_out(documents, arguments.eval_size, arguments.seed, by=["body"])
    return Split(train, pairs_from_documents(held_out))


def is_folder_of_documents(data: Any) -> bool:
    """Whether it is a folder, and no file in it holds rows."""
    if not isinstance(data, str | Path) or not Path(data).is_dir():
        return False
    kinds = {*FILE_KINDS} - {".txt"}
    return not any(file_suffix(path) in kinds for path in Path(data).rglob("*"))
