"""Hub ids, files and folders to data sets with checked, named columns.

Everything is read through `datasets`. A data set leaves this module with the columns that training knows, whatever they
were called in the source: `text`, `text_pair` and `label` for classification; `query`, `answer` and `negative_0`,
`negative_1`, ... for retrieval.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from datasets import (
    ClassLabel,
    Dataset,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)

from .errors import InputError, MissingFileError, check_hub_id

logger = logging.getLogger(__name__)

FILE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}

FEWEST_HELD_OUT, MOST_HELD_OUT = 10, 1_000


class Split(NamedTuple):
    """Training rows and the rows held out to measure on."""

    train: Dataset
    evaluation: Dataset


def load_data(data: Any, config: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """Read one split of a data set.

    Args:
        data: a Hub id, a csv, tsv, json, jsonl or parquet file (also compressed), or a folder of such files. From Python
            also a `Dataset`, a pandas frame, or a list of mappings.
        config: configuration name of a Hub data set, where it has several.
        split: split of a Hub data set or a folder; a single file is one split whatever it is called.
        revision: branch, tag or commit of a Hub data set.

    Raises:
        MissingFileError: if `data` names a file that does not exist, a folder without data, or no data set of the Hub.
        InputError: if the kind of data, the configuration or the split is unknown, or nothing could be read.
    """
    if not isinstance(data, str | Path):
        return take_rows(data)
    path = Path(data).expanduser()
    name = str(data)
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    if path.is_file() and suffix not in FILE_READERS:
        raise InputError(f"{name} is none of {', '.join(FILE_READERS)}; convert it to one of these.")
    if not path.exists():
        if suffix in FILE_READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise MissingFileError(f"{name} does not exist (looked in {Path.cwd()}).")
        check_hub_id(name, "data set")
    try:
        if path.is_file():
            options = {"sep": "\t"} if suffix == ".tsv" else {}
            return load_dataset(FILE_READERS[suffix], data_files=str(path), split="train", **options)
        if path.is_dir():
            return load_dataset(str(path), split=split)
        return load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the readers of `datasets` raise whatever their libraries raise
        asked = ", ".join(f"{k}={v}" for k, v in {"config": config, "split": split, "revision": revision}.items() if v)
        kind = MissingFileError if isinstance(error, FileNotFoundError) else InputError
        raise kind(f"Could not read the data set {name} ({asked}): {error}") from error


def take_rows(data: Any) -> Dataset:
    """A data set of what a notebook holds: a `Dataset`, a pandas frame, or a list of mappings."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, pd.DataFrame):
        return Dataset.from_pandas(data, preserve_index=False)
    if isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        return Dataset.from_list([dict(row) for row in data])
    raise InputError(
        f"data must be a path, a Hub id, a Dataset, a pandas frame or a list of mappings that is not empty, got "
        f"{type(data).__name__}."
    )


def describe_data(data: Any) -> str:
    """What to call data in messages and summaries: its path or Hub id, or its kind and number of rows.

    >>> describe_data("faq.csv"), describe_data([{"query": "a", "answer": "b"}])
    ('faq.csv', 'list of 1 rows')
    """
    return str(data) if isinstance(data, str | Path) else f"{type(data).__name__} of {len(data):,} rows"


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Around what takes moments even for a million rows, and would draw a bar for each of them."""
    enabled = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bars()


@without_progress_bars()
def select_columns(dataset: Dataset, columns: dict[str, str], source: str, flags: dict[str, str]) -> Dataset:
    """Keep `columns` (new name -> name in the source), renamed, without the rows in which a text is blank.

    Messages call the data set `source`, and the flag that sets a column by `flags` (new name -> flag).

    Raises: InputError: if a column is missing or named twice, or no row is left.
    """
    for name, column in columns.items():
        if column not in dataset.column_names:
            raise InputError(
                f"{source} has no column {column!r}; it has {', '.join(dataset.column_names)}. "
                f"Pass --{flags[name]} with one of these."
            )
        if others := [other for other in columns if columns[other] == column and other != name]:
            raise InputError(
                f"{source}: --{flags[name]} and --{flags[others[0]]} both name the column {column!r}. Pass another one."
            )
    dataset = dataset.select_columns(list(columns.values()))
    dataset = dataset.rename_columns({column: name for name, column in columns.items() if column != name})
    texts = [name for name in columns if name != "label"]
    for name in texts:
        if dataset.features[name] != Value("string"):
            dataset = dataset.cast_column(name, Value("string"))
    kept = dataset.filter(
        lambda batch: [
            all(value is not None and str(value).strip() for value in row)
            for row in zip(*(batch[name] for name in columns), strict=True)
        ],
        batched=True,
    )
    if blank := len(dataset) - len(kept):
        logger.info("%s: dropped %d of %d rows with a blank value.", source, blank, len(dataset))
    if not kept:
        raise InputError(f"{source} has no row with text in {', '.join(columns.values())} (of {len(dataset)} rows).")
    return kept


def label_names(dataset: Dataset) -> list[str]:
    """The names of the classes in the column `label`, in the order of their ids.

    A `ClassLabel` column brings its own; otherwise the distinct values, sorted, are the classes.
    """
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return [str(value) for value in sorted(set(dataset["label"]))]


@without_progress_bars()
def encode_labels(dataset: Dataset, names: Sequence[str], source: str) -> Dataset:
    """Replace the values of `label` by the class ids 0 .. len(names) - 1.

    Raises: InputError: if a label is none of `names`, or there are fewer than two classes.
    """
    if len(names) < 2:
        raise InputError(f"{source} has the label {', '.join(names)} only; a classifier needs two or more.")
    ids = {name: i for i, name in enumerate(names)}
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        values = [feature.names[i] if 0 <= i < len(feature.names) else str(i) for i in dataset["label"]]
    else:
        values = [str(value) for value in dataset["label"]]
    if unknown := sorted(set(values) - set(ids)):
        raise InputError(
            f"{source} has labels unknown to the model: {', '.join(unknown)}; the known ones are {', '.join(names)}. "
            "Remove these rows, or pass another --data or --eval_split (a split without labels often says -1)."
        )
    return dataset.remove_columns("label").add_column("label", [ids[value] for value in values])


@without_progress_bars()
def hold_out(dataset: Dataset, size: int | None, seed: int, by: Sequence[str]) -> Split:
    """Set `size` random rows aside, and drop from the rest every row that shares a text with them.

    Where that would drop more than half of the rest, as with a thousand questions for twenty answers, only rows that
    share a text of the first column are dropped.

    `size` None takes a tenth, at least 10 and at most 1,000. `by`: columns of which no text may stand on both sides.

    Raises: InputError: if fewer than `size` rows are left, or none without a text in common.
    """
    size = size or min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, len(dataset) // 10))
    if len(dataset) < 2 * size:
        raise InputError(
            f"Cannot hold out {size} of {len(dataset)} rows. Pass --eval_data or --eval_split with rows to measure "
            "on, or a smaller --eval_size."
        )
    shuffled = dataset.shuffle(seed=seed)
    evaluation = shuffled.select(range(size))
    held_out = {name: {text.strip() for text in evaluation[name]} for name in by}
    rest = shuffled.select(range(size, len(shuffled)))

    def without(columns: Sequence[str]) -> Dataset:
        return rest.filter(
            lambda batch: [
                not any(text.strip() in held_out[name] for name, text in zip(columns, row, strict=True))
                for row in zip(*(batch[name] for name in columns), strict=True)
            ],
            batched=True,
        )

    train = without(by)
    if 2 * len(train) < len(rest) and len(by) > 1:
        train, by = without(by[:1]), by[:1]
    if not len(train):
        raise InputError(
            f"All {len(rest)} rows share a text with the {size} held out. Pass --eval_data or --eval_split."
        )
    dropped = len(rest) - len(train)
    logger.info("Held out %d rows to measure on; left out %d that share a %s.", size, dropped, " or ".join(by))
    return Split(train, evaluation)


def iterate_texts(dataset: Dataset) -> Iterator[str]:
    """Every text of every string column, row by row; what a tokenizer trains on."""
    kinds = (Value("string"), Value("large_string"))  # the second of csv files and pandas frames
    columns = [name for name, feature in dataset.features.items() if feature in kinds]
    for row in dataset.select_columns(columns):
        yield from (text for text in row.values() if text)


def text_id(text: str) -> int:
    """A 63-bit number that is equal for equal texts, on every process and machine, white space around them apart."""
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
