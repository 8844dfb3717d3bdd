"""Hub ids, files, folders and rows in memory to data sets with checked, named columns.

A data set leaves this module with the columns that training knows, whatever they were called in the source: `text`,
`text_pair` and `label` for classification; `query`, `answer` and `negative_0`, `negative_1`, ... for retrieval.
"""

import glob
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError

from .errors import InputError, MissingFileError, check_hub_id
from .files import sha256
from .hub import limited_silence
from .reading import PLAINLY, READERS, Row, Written, as_column, as_text, file_suffix, read_rows

logger = logging.getLogger(__name__)

FILE_KINDS = (*READERS, ".parquet")
READING = "1"  # to be raised where the same file gives other rows than before
MOST_HELD_OUT = 1_000
EXAMPLES_FILE = "examples.json"  # of a model folder, whose card and page show them
Part = tuple[str, Path | list[Row]]  # of data: its name for the messages, and a file or rows
Names = dict[str, str]  # of columns, or of the flags that set them


class Split(NamedTuple):
    """Training rows and the rows held out to measure on."""

    train: Dataset
    evaluation: Dataset


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Around what takes moments even for a million rows, and would draw a bar for each of them."""
    enabled = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def load_data(
    data: Any,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    texts: Sequence[str] = (),
    values: Sequence[str] = (),
    unfold: str | None = None,
    written: Written = PLAINLY,
) -> Dataset:
    """Read one split of a data set.

    Args:
        data: a Hub id, a file (one of `FILE_KINDS`, also compressed), a folder of such files, a `Dataset`, a pandas
            frame, or mappings.
        config, revision: of a Hub data set.
        split: of a Hub data set or a folder; a single file is one split whatever it is called.
        texts: columns that are read as texts. Where one is missing, the result has the names that there are, and no rows.
        values: further columns; without either, all that hold no lists. One becomes a number where all its values print
            back as the file has them. What `datasets` reads, parquet and the Hub, stays as it is.
        unfold: a column in which a list of texts makes a row of each.

    Raises:
        MissingFileError: if `data` names a file that does not exist, a folder without data, or no data set of the Hub.
        InputError: if the kind of data, the configuration or the split is unknown, or nothing could be read.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, str | Path):
        return store_rows([(describe_data(data), take_rows(data))], texts, values, unfold, written)
    path, name = Path(os.path.expanduser(data)), str(data)  # pathlib's raises where there is no such user
    if path.is_file() and file_suffix(path) not in FILE_KINDS:
        raise InputError(f"{name} is none of {', '.join(FILE_KINDS)}; convert it to one of these.")
    if not path.exists():
        if file_suffix(path) in FILE_KINDS:
            raise MissingFileError(f"{name} does not exist (looked in {Path.cwd()}).")
        check_hub_id(name, "data set")
    try:
        files = [path] if path.is_file() else split_files(path, split) if path.is_dir() else []
        if files and all(file_suffix(file) in READERS for file in files):
            return store_rows([(str(file), file) for file in files], texts, values, unfold, written)
        if files and all(file_suffix(file) == ".parquet" for file in files):
            return load_dataset("parquet", data_files=[glob.escape(str(file)) for file in files], split="train")
        with limited_silence():
            return load_dataset(str(path) if path.is_dir() else name, config, split=split, revision=revision)
    except InputError:
        raise
    except Exception as error:  # the readers of `datasets` raise whatever their libraries raise
        asked = ", ".join(f"{k}={v}" for k, v in {"config": config, "split": split, "revision": revision}.items() if v)
        kind = MissingFileError if isinstance(error, FileNotFoundError) else InputError
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        where = "" if path.exists() else f" There is no such file or folder in {Path.cwd()} either."
        raise kind(f"Could not read the data set {name} ({asked}): {str(cause).rstrip('.')}.{where}") from error


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a folder that belong to a split by their names, as `datasets` tells them; none if it knows none."""
    place = glob.escape(str(folder.resolve()))
    files = DataFilesDict.from_patterns(get_data_patterns(place), base_path=place).get(split, [])
    named = [path for path in map(Path, files) if file_suffix(path) in FILE_KINDS]
    return [path for path in named if file_suffix(path) != ".txt"] or named


def place_rows(parts: Sequence[Part], columns: Collection[str], written: Written) -> Iterator[tuple[str, Row]]:
    """Every row with its place."""
    for source, part in parts:
        rows = read_rows(part, columns, written) if isinstance(part, Path) else part
        yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


@without_progress_bars()
def store_rows(
    parts: Sequence[Part], texts: Sequence[str], values: Sequence[str], unfold: str | None, written: Written
) -> Dataset:
    """`load_data` of files, which `datasets` keeps on disk by their content, or of rows in memory."""
    asked = {*texts, *values}
    read = partial(place_rows, parts, [*texts, *values], written)
    columns: dict[str, bool] = {}  # name -> whether it holds lists or mappings
    for _, row in read():
        columns |= {name: columns.get(name, False) or isinstance(value, list | dict) for name, value in row.items()}
        if asked and asked <= columns.keys():
            break
    if not columns:
        raise InputError(f"{parts[0][0]} has no rows.")
    if not asked <= columns.keys():
        return Dataset.from_dict({name: [] for name in columns})
    values = values if asked else [name for name, nested in columns.items() if not nested]
    files = [part for _, part in parts if isinstance(part, Path)]
    written_out = bool(files) and all(file_suffix(file) in (".csv", ".tsv") for file in files)
    rows = [[row.get(name) for name in values] for _, row in read()] if values else []
    stored = {
        name: as_column(column, written_out, f"{parts[0][0]}, column {name}")
        for name, column in zip(values, zip(*rows, strict=True), strict=True)
        if name not in texts
    }
    if not texts:
        return Dataset.from_dict(stored)
    features = Features(dict.fromkeys(texts, Value("string")))
    if files:
        # By content: times of change are the same for other bytes, and others for the same.
        given: dict[str, Any] = {"read": read, "unfold": unfold, "key": " ".join([READING, *map(sha256, files)])}
        given |= {"texts": tuple(texts)}  # `datasets` would take a list for shards
        try:
            dataset = Dataset.from_generator(text_rows, features=features, gen_kwargs=given)
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
    else:
        dataset = Dataset.from_list(list(text_rows(read, texts, unfold)), features=features)
    for name, column in stored.items():
        dataset = dataset.add_column(name, column)
    return dataset


def text_rows(
    read: Callable[[], Iterator[tuple[str, Row]]], texts: Sequence[str], unfold: str | None, key: str = ""
) -> Iterator[dict[str, str | None]]:
    """Rows with the columns `texts`. `key` is what else they depend on, for the cache of `datasets`."""
    for place, row in read():
        for one in unfolded(row, unfold):
            yield {name: as_text(one.get(name), f"{place}, column {name}") for name in texts}


def unfolded(row: Row, column: str | None) -> Iterator[Row]:
    """The row, once for each text of the list in a column."""
    several: Any = row.get(column) if column else None
    if hasattr(several, "__len__") and not isinstance(several, str | Mapping):
        yield from ({**row, column: text} for text in (list(several) or [None]))
    else:
        yield row


def take_rows(data: Any) -> list[Row]:
    """The rows of a pandas frame, or mappings. Raises: InputError: if it is anything else, or empty."""
    rows = data.to_dict("records") if isinstance(data, pd.DataFrame) else data
    rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, Mapping) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(
            f"data must be a path, a Hub id, a Dataset, a pandas frame or a list of mappings that is not empty, got "
            f"{type(data).__name__}."
        )
    return rows


def describe_data(data: Any) -> str:
    """What to call data in messages and summaries: its paths or Hub ids, or its kind and number of rows.

    >>> describe_data(["a.csv", "b.csv"]), describe_data([{"query": "a", "answer": "b"}])
    ('a.csv, b.csv', 'list of 1 rows')
    """
    named = data_sources(data)
    if all(isinstance(one, str | Path) for one in named):
        return ", ".join(map(str, named))
    return f"{type(data).__name__} of {len(data):,} rows" if isinstance(data, Sized) else type(data).__name__


def data_sources(data: Any) -> list[Any]:
    """The data sets that were given: several paths or Hub ids, or one of any kind."""
    several = isinstance(data, list | tuple) and len(data) > 0 and all(isinstance(one, str | Path) for one in data)
    return list(data) if several else [data]


def read_columns(
    data: Any, columns: Names, flags: Names, split: str = "train", unfold: str | None = None, **reading: Any
) -> Dataset:
    """`select_columns` of one data set or of several, one after the other; `reading` is what else `load_data` takes."""
    parts = []
    for one in data_sources(data):
        rows = load_data(one, split=split, texts=list(columns.values()), unfold=unfold, **reading)
        parts.append(select_columns(rows, columns, f"{describe_data(one)} ({split})", flags, unfold))
    if len(parts) > 1 and "label" in columns:
        parts = [part.remove_columns("label").add_column("label", label_texts(part)) for part in parts]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


@without_progress_bars()
def select_columns(dataset: Dataset, columns: Names, source: str, flags: Names, unfold: str | None = None) -> Dataset:
    """Keep `columns` (new name -> name in the source), renamed, without the rows in which a value is blank.

    All but `label` become texts. What is dropped is counted in the log, more than a tenth of the rows as a warning.
    Messages call the data set `source`, and the flag that sets a column by `flags` (new name -> flag).

    Raises: InputError: if a column is missing or named twice, a value is no text, or no row is left.
    """
    for name, column in columns.items():
        if column not in dataset.column_names:
            there = ", ".join(dataset.column_names)
            remedy = f"Pass --{flags[name]} with one of these." if flags else "Rename one of these."
            raise InputError(f"{source} has no column {column!r}; it has {there}. {remedy}")
        if others := [other for other in columns if columns[other] == column and other != name]:
            raise InputError(
                f"{source}: --{flags[name]} and --{flags[others[0]]} both name the column {column!r}. Pass another one."
            )
    texts = [column for name, column in columns.items() if name != "label"]
    dataset = with_texts(dataset.select_columns(list(columns.values())), texts, source, unfold)
    dataset = dataset.rename_columns({column: name for name, column in columns.items() if column != name})

    def is_whole(*row: Any) -> bool:
        return all(value is not None and str(value).strip() for value in row)

    kept = dataset.filter(lambda *cells: [*map(is_whole, *cells)], batched=True, input_columns=dataset.column_names)
    if not kept:
        raise InputError(f"{source} has no row with text in {', '.join(columns.values())} (of {len(dataset)} rows).")
    if dropped := len(dataset) - len(kept):
        first = next(number for number, row in enumerate(dataset, start=1) if not is_whole(*row.values()))
        level = logging.WARNING if dropped > len(dataset) / 10 else logging.INFO
        message = "%s: dropped %d of %d rows with a blank value, as row %d."
        logger.log(level, message, source, dropped, len(dataset), first)
    return kept


def with_texts(dataset: Dataset, texts: Collection[str], source: str, unfold: str | None = None) -> Dataset:
    """The data set with the columns `texts` as texts. Raises: InputError: as `as_text`, with the place of the value."""
    features = Features(dataset.features | dict.fromkeys(texts, Value("string")))
    if features == dataset.features:
        return dataset

    def convert(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in batch}
        for number, cells in zip(numbers, zip(*batch.values(), strict=True), strict=True):
            for one in unfolded(dict(zip(batch, cells, strict=True)), unfold):
                for name, value in one.items():
                    place = f"{source}, row {number + 1}, column {name}"
                    columns[name].append(as_text(value, place) if name in texts else value)
        return columns

    return dataset.map(convert, batched=True, with_indices=True, features=features)


def label_texts(dataset: Dataset) -> list[str]:
    """The column `label` as texts; of a `ClassLabel` column, the names of the classes."""
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        return [feature.names[i] if 0 <= i < len(feature.names) else str(i) for i in dataset["label"]]
    return [str(value) for value in dataset["label"]]


def label_names(dataset: Dataset) -> list[str]:
    """The names of the classes in the column `label`, in the order of their ids.

    A `ClassLabel` column brings its own. Otherwise the distinct values are the classes, sorted as numbers if all are.
    """
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return [str(name) for name in sorted(set(as_column(label_texts(dataset), True, "label")))]


def report_labels(dataset: Dataset, source: str) -> None:
    """Warn of classes that look like slips: names that differ by case or blanks only, and those of a single row."""
    counts = Counter(label_texts(dataset))
    alike: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        alike[" ".join(name.split()).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            logger.warning("%s: %s are classes of their own. If they mean the same, write them alike.", source, names)
    if rare := [name for name, count in counts.items() if count == 1]:
        logger.warning("%s: only one row has the label %s. More rows are needed to learn it.", source, ", ".join(rare))


@without_progress_bars()
def encode_labels(dataset: Dataset, names: Sequence[str], source: str) -> Dataset:
    """Replace the values of `label` by the class ids 0 .. len(names) - 1.

    Raises: InputError: if a label is none of `names`, or there are fewer than two classes.
    """
    if len(names) < 2:
        raise InputError(f"{source} has the label {', '.join(names)} only; a classifier needs two or more.")
    ids = {name: i for i, name in enumerate(names)}
    values = label_texts(dataset)
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
    size = size or min(MOST_HELD_OUT, max(10, len(dataset) // 10))
    if len(dataset) < 2 * size:
        raise InputError(
            f"Cannot hold out {size} of {len(dataset)} rows. Pass --eval_data or --eval_split with rows to measure "
            "on, or a smaller --eval_size."
        )
    shuffled = dataset.shuffle(seed=seed)
    evaluation = shuffled.select(range(size))
    held_out = {name: {text.strip() for text in evaluation[name]} for name in by}
    rest = shuffled.select(range(size, len(shuffled)))
    shares = np.array([[text.strip() in held_out[name] for text in rest[name]] for name in by])  # (columns, rows)
    if 2 * shares.any(axis=0).sum() > len(rest):
        shares, by = shares[:1], by[:1]
    train = rest.select(np.flatnonzero(~shares.any(axis=0)))
    if not len(train):
        raise InputError(
            f"All {len(rest)} rows share a text with the {size} held out. Pass --eval_data or --eval_split."
        )
    dropped = len(rest) - len(train)
    logger.info("Held out %d rows to measure on; left out %d that share a %s.", size, dropped, " or ".join(by))
    return Split(train, evaluation)


def pick_examples(rows: Dataset) -> list[dict[str, str]]:
    """The first rows of pairs or of labelled texts, without labels; long texts are cut, and none comes twice."""
    columns = [name for name in ("query", "answer", "text", "text_pair") if name in rows.column_names]
    few = pd.DataFrame(rows.select_columns(columns)[:1000])
    for name in columns:
        few[name] = few[name].str.split().str.join(" ").str.extract(r"(.{,200}(?!\S)|.{200})", expand=False)
        few = few.drop_duplicates(name)
    return few[:12].to_dict("records")


def iterate_texts(dataset: Dataset) -> Iterator[str]:
    """Every text of every string column, row by row; what a tokenizer trains on."""
    kinds = (Value("string"), Value("large_string"))  # the second of csv files and pandas frames
    for row in dataset.select_columns([name for name, feature in dataset.features.items() if feature in kinds]):
        yield from (text for text in row.values() if text)


def text_id(text: str) -> int:
    """A 63-bit number that is equal for equal texts, on every process and machine, white space around them apart."""
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
