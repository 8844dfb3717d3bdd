"""Records of an index: how they are read and checked."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np

from ..errors import InputError
from ..extras import import_extra
from ..passages import passage_splitter
from ..reading import PLAINLY, Written, as_text, plain

logger = logging.getLogger(__name__)

COLLECTION = "passages"  # the table of a folder, and a server's collection where the address names none
METADATA_KEY = "tinybert_hf"  # what the description is stored under
BUILT_IN = ("id", "text", "embedding")  # fields that every record has
OPERATORS = ("<", "<=", ">", ">=")

Filter = Sequence[tuple[str, str, Any]]  # (field, "in" or one of OPERATORS, value); all must hold


class RecordTypeError(InputError, TypeError):
    """A record, or a value in it, has a type that cannot be stored."""


class NewRecord(NamedTuple):
    """A record as it was given. Where `embedding` is None, the text is to be encoded."""

    id: str
    text: str
    metadata: dict[str, Any]
    embedding: np.ndarray | None


class Hit(TypedDict):
    """One result of a search. The record's metadata stands beside these keys, under its own names."""

    id: str
    score: float
    text: str


def as_hit(row: Mapping[str, Any], score: float, fields: Iterable[str]) -> Hit:
    """A stored row as a result, without the fields that its record does not have."""
    metadata = {name: row[name] for name in fields if row.get(name) is not None}
    return cast(Hit, {"id": row["id"], "score": score, "text": row["text"], **metadata})


def read_records(
    data: str,
    text_column: str = "text",
    id_column: str | None = None,
    metadata_columns: Sequence[str] = (),
    config: str | None = None,
    split: str = "train",
    written: Written = PLAINLY,
) -> Iterable[Mapping[str, Any]]:
    """Read the records of a data set, without those whose text is blank; `SearchIndex.add` takes them.

    `data`, `config`, `split` and `written` are as `load_data` takes them.

    Raises: InputError: if the data cannot be read, or a column is missing.
    """
    import_extra("datasets", "index", "an index")  # searching does without
    from ..data import load_data, with_texts, without_progress_bars

    texts = [text_column, *([id_column] if id_column else [])]
    rows = load_data(data, config, split, texts=texts, values=metadata_columns, written=written)
    columns = {"text": text_column} | ({"id": id_column} if id_column else {})
    columns |= {name: name for name in metadata_columns}
    if missing := set(columns.values()) - set(rows.column_names):
        raise InputError(
            f"{data} has no column {min(missing)!r}; it has {', '.join(rows.column_names)}. See --text_column, "
            "--id_column and --metadata_columns."
        )
    rows = with_texts(rows.select_columns(list(dict.fromkeys(columns.values()))), texts, data)
    with without_progress_bars():
        kept = rows.filter(
            lambda texts: [text is not None and bool(str(text).strip()) for text in texts],
            input_columns=text_column,
            batched=True,
        )
    if blank := len(rows) - len(kept):
        logger.info("%s rows without text were left out.", f"{blank:,}")
    return kept.with_transform(lambda batch: {name: batch[column] for name, column in columns.items()})


def cut_records(records: Iterable[Mapping[str, Any]], pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """The records, several in place of each whose text is longer than the pipeline's model reads: `ID#1`, `ID#2`, ..."""
    splitter = passage_splitter(pipeline)
    for record in records:
        parts = splitter.chunks(record["text"])
        name = text_hash(record["text"]) if record.get("id") is None else record["id"]
        for number, part in enumerate(parts, start=1):
            yield {**record, "text": part, "id": f"{name}#{number}"} if len(parts) > 1 else record


def parse_record(record: Any, position: int) -> NewRecord:
    """Check one record; `position` is for the message.

    Raises: InputError: if it cannot be stored; a RecordTypeError if a type is what is wrong.
    """
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        raise RecordTypeError(
            f"records[{position}] must be a string or a mapping, got {type(record).__name__}: {record!r}"
        )
    record = {key: plain(value) for key, value in record.items()}
    text = record.get("text")
    if not isinstance(text, str):
        raise RecordTypeError(f"records[{position}] must have a string as text, got {text!r}.")
    if not text.strip():
        raise InputError(f"records[{position}] has a blank text. Leave such records out.")
    given = record.get("id")
    name = text if given is None else text_of_id(given, f"the id of records[{position}]")
    vector = record.get("embedding")
    metadata = {key: value for key, value in record.items() if key not in BUILT_IN and value is not None}
    for key, value in [("text", text), ("id", name), *metadata.items()]:
        if isinstance(value, str):
            as_text(value, f"{key} of records[{position}]")  # text in Unicode
    for key, value in metadata.items():
        if not isinstance(key, str) or not key.isidentifier() or not key.isascii() or key.startswith("_"):
            raise InputError(
                f"records[{position}]: {key!r} cannot be a field's name. Use letters, digits and _, and begin with a "
                "letter."
            )
        if key == "score":
            raise InputError(f"records[{position}]: {key!r} is a name that results have; call it another.")
        if type(value).__name__ not in ("str", "int", "float", "bool"):
            raise RecordTypeError(
                f"records[{position}]: {key} must be a string, a number, a boolean or None, got {value!r}."
            )
    name = text_hash(text) if given is None else name
    return NewRecord(name, text, metadata, None if vector is None else np.asarray(vector, dtype=np.float32).ravel())


def text_hash(text: str) -> str:
    """The id of a text without one: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def text_of_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RecordTypeError(f"{where}: an id is a string or an integer, got {value!r}.")
    if not str(value).strip():
        raise InputError(f"{where}: an id must not be blank.")
    return str(value)


def parse_filter(given: Mapping[str, Any], fields: Mapping[str, str]) -> Filter:
    """A filter as conditions that every store understands. Raises: InputError: if it does not fit the fields.

    >>> parse_filter({"year": {">=": 2020}, "section": "vcs"}, {"year": "int", "section": "str"})
    [('year', '>=', 2020), ('section', 'in', ['vcs'])]
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f'A filter is a mapping such as {{"field": value}}, {{"field": [values]}} or {{"field": {{">=": value}}}}, '
            f"got {given!r}."
        )
    conditions: list[tuple[str, str, Any]] = []
    for name, value in given.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise InputError(f"There is no field {name!r} to filter by; the index has: {known}.")
        where = f"filter[{name!r}]"
        if isinstance(value, Mapping):
            if not value or set(value) - set(OPERATORS):
                raise InputError(f"{where} must have one or more of {', '.join(OPERATORS)}, got {value!r}.")
            conditions += [(name, sign, as_field(bound, fields[name], where)) for sign, bound in value.items()]
        else:
            values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
            if not values:
                raise InputError(f"{where} is an empty list, which nothing can be in.")
            conditions.append((name, "in", [as_field(item, fields[name], where) for item in values]))
    return conditions


def as_field(value: Any, kind: str, where: str) -> Any:
    """The value in the type of its field; a whole number may stand for a float. Raises: InputError: if it does not fit."""
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind:
        raise InputError(f"{where} must be of the field's type {kind}, got {value!r}.")
    if (kind == "float" and not math.isfinite(value)) or (kind == "int" and not -(2**63) <= value < 2**63):
        raise InputError(f"{where} must be finite and fit in 64 bits, got {value!r}.")
    return value


def unit_rows(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rows scaled to length 1. Raises: InputError: if one has a length of 0, or a number that is not finite."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    for name, length in zip(names, lengths[:, 0].tolist(), strict=True):
        if not (math.isfinite(length) and length > 0):
            raise InputError(f"The embedding of {name} is 0 or not finite.")
    return (rows / lengths).astype(np.float32)
