"""Records of an index: how they are read and checked."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, import_extra
from ..passages import passage_splitter
from ..reading import as_text, plain

logger = logging.getLogger(__name__)

COLLECTION = "passages"  # the table of a folder, and a server's collection where the address names none
METADATA_KEY = "tinybert_hf"  # what the description is stored under
BUILT_IN = ("id", "text", "embedding")  # fields that every record has
OPERATORS = ("<", "<=", ">", ">=")

Filter = str | Sequence[tuple[str, str, Any]]  # an expression, or (field, "in" or one of OPERATORS, value): all hold
Hit = dict[str, Any]  # one result: id, score and text, and beside them the record's metadata


class RecordTypeError(InputError, TypeError):
    """A record, or a value in it, has a type that cannot be stored."""


class NewRecord(NamedTuple):
    id: str
    text: str
    metadata: dict[str, Any]
    embedding: np.ndarray | None  # None: the text is to be encoded


def as_hit(row: Mapping[str, Any], score: float, fields: Iterable[str]) -> Hit:
    """A stored row as a result, without the fields that its record does not have."""
    metadata = {name: row[name] for name in fields if row.get(name) is not None}
    return {"id": row["id"], "score": score, "text": row["text"], **metadata}


def read_records(
    data: str,
    text_column: str = "text",
    id_column: str | None = None,
    metadata_columns: Sequence[str] = (),
    **reading: Any,
) -> Iterable[Mapping[str, Any]]:
    """The records of a data set, without those whose text is blank. `reading`, and errors, are those of `load_data`."""
    import_extra("datasets", "index", "an index")  # searching does without
    from ..data import load_data, with_texts, without_progress_bars

    texts = {"text": text_column} | ({"id": id_column} if id_column else {})
    columns = texts | {name: name for name in metadata_columns}
    rows = load_data(data, texts=[*texts.values()], values=metadata_columns, **reading)
    if missing := set(columns.values()) - set(rows.column_names):
        known, flags = ", ".join(rows.column_names), "--text_column, --id_column and --metadata_columns"
        raise InputError(f"{data} has no column {min(missing)!r}; it has {known}. See {flags}.")
    rows = with_texts(rows.select_columns(list(dict.fromkeys(columns.values()))), [*texts.values()], data)
    with without_progress_bars():
        options: dict[str, Any] = {"batched": True, "input_columns": text_column}
        kept = rows.filter(lambda texts: [bool((text or "").strip()) for text in texts], **options)
    if blank := len(rows) - len(kept):
        logger.info("%s rows without text were left out.", f"{blank:,}")
    return kept.with_transform(lambda batch: {name: batch[column] for name, column in columns.items()})


def cut_records(records: Iterable[Mapping[str, Any]], pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """The records; of a text that is longer than the pipeline's model reads, one for each part: `ID#1`, `ID#2`, ..."""
    splitter = passage_splitter(pipeline)
    for record in records:
        parts = splitter.chunks(record["text"])
        name = text_hash(record["text"]) if record.get("id") is None else record["id"]
        for number, part in enumerate(parts, start=1):
            yield {**record, "text": part, "id": f"{name}#{number}"} if len(parts) > 1 else record


def parse_record(record: Any, position: int) -> NewRecord:
    """Check the record at a position. Raises: InputError: if it cannot be stored; RecordTypeError if by its type."""
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        kind = type(record).__name__
        raise RecordTypeError(f"records[{position}] must be a string or a mapping, got {kind}: {record!r}")
    record = {key: plain(value) for key, value in record.items()}
    text = record.get("text")
    if not isinstance(text, str):
        raise RecordTypeError(f"records[{position}] must have a string as text, got {text!r}.")
    if not text.strip():
        raise InputError(f"records[{position}] has a blank text. Leave such records out.")
    given, vector = record.get("id"), record.get("embedding")
    metadata = {key: value for key, value in record.items() if key not in BUILT_IN and value is not None}
    for key, value in [("text", text), ("id", given), *metadata.items()]:
        if isinstance(value, str):
            as_text(value, f"{key} of records[{position}]")  # text in Unicode
    for key, value in metadata.items():
        if not isinstance(key, str) or not key.isidentifier() or not key.isascii() or key.startswith("_"):
            allowed = "Use letters, digits and _, and begin with a letter."
            raise InputError(f"records[{position}]: {key!r} cannot be a field's name. {allowed}")
        if key == "score":
            raise InputError(f"records[{position}]: {key!r} is a field of every result. Choose another name.")
        if type(value).__name__ not in ("str", "int", "float", "bool"):
            allowed = "a string, a number, a boolean or None"
            raise RecordTypeError(f"records[{position}]: {key} must be {allowed}, got {value!r}.")
    name = text_hash(text) if given is None else text_of_id(given, f"the id of records[{position}]")
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
        examples = '{"field": value}, {"field": [values]} or {"field": {">=": value}}'
        raise InputError(f"A filter is a mapping such as {examples}, got {given!r}.")
    conditions: list[tuple[str, str, Any]] = []
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"There is no field {name!r} to filter by; the index has: {', '.join(fields) or 'none'}.")
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
    """The value in its field's type; a whole number may stand for a float. Raises: InputError: if it does not fit."""
    whole = type(value) is int
    if (whole and not -(2**63) <= value < 2**63) or (type(value) is float and not math.isfinite(value)):
        raise InputError(f"{where} must be finite and fit in 64 bits, got {value!r:.200}.")
    value = float(value) if whole and kind == "float" else value
    if type(value).__name__ != kind:
        raise InputError(f"{where} must be of the field's type {kind}, got {value!r}.")
    return as_text(value, where) if kind == "str" else value


def unit_rows(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rows scaled to length 1. Raises: InputError: if one has a length of 0, or a number that is not finite."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if (wrong := ~(np.isfinite(lengths) & (lengths > 0))).any():
        raise InputError(f"The embedding of {names[wrong.argmax()]} is 0 or not finite.")
    return (rows / lengths).astype(np.float32)
