"""Hub ids, files and folders to data sets with checked, named columns.

Everything is read through `datasets`. A data set leaves this module with the columns that training knows, whatever they
were called in the source: `text`, `text_pair` and `label` for classification; `query`, `answer` and `negative_0`,
`negative_1`, ... for retrieval.
"""

import hashlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from datasets import (
    ClassLabel,
    Dataset,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)

logger = logging.getLogger(__name__)

FILE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}


class Split(NamedTuple):
    """Training rows and the rows held out to measure on."""

    train: Dataset
    evaluation: Dataset


def import_extra(module: str, extra: str = "train", purpose: str = "measuring") -> ModuleType:
    """Import what loading and searching do not need.

    Raises: ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; {purpose} needs it: pip install 'tinybert_hf[{extra}]'"
        ) from error


def load_data(
    data: str, config: str | None = None, split: str = "train", revision: str | None = None
) -> Dataset:
    """Read one split of a data set.

    Args:
        data: a Hub id, a csv, tsv, json, jsonl or parquet file (also compressed), or a folder of such files.
        config: configuration name of a Hub data set, where it has several.
        split: split of a Hub data set or a folder; a single file is one split whatever it is called.
        revision: branch, tag or commit of a Hub data set.

    Raises:
        FileNotFoundError: if `data` names a file that does not exist.
        ValueError: if the kind of file, the configuration or the split is unknown, or nothing could be read.
    """
    path = Path(data).expanduser()
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    try:
        if path.is_file():
            if suffix not in FILE_READERS:
                raise ValueError(f"{data} is none of {', '.join(FILE_READERS)}; convert it to one of these.")
            options = {"sep": "\t"} if suffix == ".tsv" else {}
            return load_dataset(FILE_READERS[suffix], data_files=str(path), split="train", **options)
        if path.is_dir():
            return load_dataset(str(path), split=split)
        if suffix in FILE_READERS or data.startswith((".", "/", "~")) or data.count("/") > 1:
            raise FileNotFoundError(f"{data} does not exist (looked in {Path.cwd()}).")
        return load_dataset(data, config, split=split, revision=revision)
    except FileNotFoundError:
        raise
    except Exception as error:
        asked = ", ".join(
            f"{k}={v}" for k, v in {"config": config, "split": split, "revision": revision}.items() if v
        )
        raise ValueError(f"Could not read the data set {data} ({asked}): {error}") from error


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

    Args:
        dataset: the rows as read.
        columns: new name -> name in the source.
        source: what to call the data set in messages.
        flags: new name -> the flag that sets its column, for the messages.

    Raises: ValueError: if a column is missing, or no row is left.
    """
    for name, column in columns.items():
        if column not in dataset.column_names:
            raise ValueError(
                f"{source} has no column {column!r}; it has {', '.join(dataset.column_names)}. "
                f"Pass --{flags[name]} with one of these."
            )
    dataset = dataset.select_columns(list(dict.fromkeys(columns.values())))
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
        raise ValueError(
            f"{source} has no row with text in {', '.join(columns.values())} (of {len(dataset)} rows)."
        )
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

    Raises: ValueError: if a label is none of `names`, or there are fewer than two classes.
    """
    if len(names) < 2:
        raise ValueError(f"{source} has the label {', '.join(names)} only; a classifier needs two or more.")
    ids = {name: i for i, name in enumerate(names)}
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        values = [feature.names[i] if 0 <= i < len(feature.names) else str(i) for i in dataset["label"]]
    else:
        values = [str(value) for value in dataset["label"]]
    if unknown := sorted(set(values) - set(ids)):
        raise ValueError(
            f"{source} has labels unknown to the model: {', '.join(unknown)}; the known ones are {', '.join(names)}. "
            "Remove these rows, or pass another --data or --eval_split (a split without labels often says -1)."
        )
    return dataset.remove_columns("label").add_column("label", [ids[value] for value in values])


@without_progress_bars()
def hold_out(dataset: Dataset, size: int, seed: int, by: Sequence[str]) -> Split:
    """Set `size` random rows aside, and drop from the rest every row that shares a text with them.

    Args:
        dataset: the rows to split.
        size: rows to hold out.
        seed: of the choice.
        by: columns of which no text may stand on both sides.

    Raises: ValueError: if fewer than `size` rows would remain for training.
    """
    if len(dataset) < 2 * size:
        raise ValueError(
            f"Cannot hold out {size} of {len(dataset)} rows. Pass --eval_data or --eval_split with rows to measure "
            "on, or a smaller --eval_size."
        )
    shuffled = dataset.shuffle(seed=seed)
    evaluation = shuffled.select(range(size))
    held_out = {name: {text.strip() for text in evaluation[name]} for name in by}
    rest = shuffled.select(range(size, len(shuffled)))
    train = rest.filter(
        lambda batch: [
            not any(text.strip() in held_out[name] for name, text in zip(by, row, strict=True))
            for row in zip(*(batch[name] for name in by), strict=True)
        ],
        batched=True,
    )
    logger.info("Held out %d rows; %d of the rest shared a text with them.", size, len(rest) - len(train))
    return Split(train, evaluation)


def iterate_texts(dataset: Dataset) -> Iterator[str]:
    """Every text of every string column, row by row; what a tokenizer trains on."""
    columns = [name for name, feature in dataset.features.items() if feature == Value("string")]
    for row in dataset.select_columns(columns):
        yield from (text for text in row.values() if text)


def text_id(text: str) -> int:
    """A 63-bit number that is equal for equal texts, on every process and machine, white space around them apart."""
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
