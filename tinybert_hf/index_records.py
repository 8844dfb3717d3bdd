"""What a `SearchIndex` stores and filters by, and what its homes, a folder and a server, must do.

A home stores records and finds them by vector and by word, with its engine's own means; it knows nothing of models. Every
failure of an engine leaves a home as an OSError (a server's as a ConnectionError) that names the address and what to do.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from .data import import_extra

COLLECTION = "passages"  # the table of a folder, and a server's collection where the address names none
METADATA_KEY = "tinybert_hf"  # what the description is stored under
BUILT_IN = ("id", "text", "embedding")  # fields that every record has
RESERVED = {*BUILT_IN, "score"}  # names that metadata cannot have
# What a metadata field can hold, by the name that is stored with the index.
FIELD_TYPES = ("str", "int", "float", "bool")
OPERATORS = ("<", "<=", ">", ">=")

Filter = Sequence[tuple[str, str, Any]]  # (field, "in" or one of OPERATORS, value); all must hold
Hits = list[dict[str, Any]]  # best first: id, score, text, and the metadata that the record has

import_engine = partial(import_extra, extra="index", purpose="an index")


class Draft(NamedTuple):
    """A record as it was given; `embedding` None is to be encoded."""

    id: str
    text: str
    metadata: dict[str, Any]
    embedding: np.ndarray | None


class Record(NamedTuple):
    """What a home stores; `embedding` has length 1."""

    id: str
    text: str
    embedding: np.ndarray
    metadata: dict[str, Any]


class Home(Protocol):
    """Where records are. Rows of `embeddings` are queries of length 1."""

    def description(self) -> dict[str, Any] | None:
        """What `create` was given; None where there is no index yet."""

    def create(self, description: dict[str, Any]) -> None: ...

    def fields(self) -> dict[str, str]:
        """Metadata fields and the names of their types."""

    def add_fields(self, fields: Mapping[str, str]) -> None: ...

    def count(self) -> int: ...

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """The texts stored under those of the ids that are stored."""

    def write(self, records: Sequence[Record], replace: bool) -> None:
        """All of the records or none; they are on disk when this returns. Without `replace`, the ids are new."""

    def delete(self, ids: Sequence[str]) -> None: ...

    def settle(self) -> None:
        """After writing: what makes searching fast. Searches are right without it."""

    def dense(self, embeddings: np.ndarray, top_k: int, conditions: Filter) -> list[Hits]: ...

    def bm25(self, queries: Sequence[str], top_k: int, conditions: Filter) -> list[Hits]: ...

    def info(self) -> dict[str, Any]:
        """What the engine tells of its index, for `info`."""


# ---- Checks ----


def parse_record(record: Any, position: int) -> Draft:
    """Check one record; `position` is for the message.

    Raises:
        TypeError: if it is neither a text nor a mapping, or a value has no type that can be stored.
        ValueError: if a text or an id is blank, or a name cannot be a field's.
    """
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        raise TypeError(
            f"records[{position}] must be a string or a mapping, got {type(record).__name__}: {record!r}"
        )
    text = record.get("text")
    if not isinstance(text, str):
        raise TypeError(f"records[{position}] must have a string as text, got {text!r}.")
    if not text.strip():
        raise ValueError(f"records[{position}] has a blank text. Leave such records out.")
    given = record.get("id")
    name = text_hash(text) if given is None else text_of_id(given, f"the id of records[{position}]")
    vector = record.get("embedding")
    metadata = {key: value for key, value in record.items() if key not in BUILT_IN and value is not None}
    for key, value in metadata.items():
        if not isinstance(key, str) or not key.isidentifier() or not key.isascii() or key.startswith("_"):
            raise ValueError(
                f"records[{position}]: {key!r} cannot be a field's name; letters, digits and _ can, not first."
            )
        if key in RESERVED:
            raise ValueError(f"records[{position}]: {key!r} is a name that results have; call it another.")
        if type(value).__name__ not in FIELD_TYPES:
            raise TypeError(
                f"records[{position}]: {key} must be a string, a number, a boolean or None, got {value!r}."
            )
    return Draft(
        name, text, metadata, None if vector is None else np.asarray(vector, dtype=np.float32).ravel()
    )


def text_hash(text: str) -> str:
    """The id of a text without one: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def parse_filter(given: Mapping[str, Any], fields: Mapping[str, str]) -> Filter:
    """A filter as conditions that both homes understand.

    Raises: ValueError: if it is no such mapping, names an unknown field, or a value has not the field's type.

    >>> parse_filter({"year": {">=": 2020}, "section": "vcs"}, {"year": "int", "section": "str"})
    [('year', '>=', 2020), ('section', 'in', ['vcs'])]
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f'A filter is a mapping such as {{"field": value}}, {{"field": [values]}} or {{"field": {{">=": value}}}}, '
            f"got {given!r}."
        )
    conditions: list[tuple[str, str, Any]] = []
    for name, value in given.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise ValueError(f"There is no field {name!r} to filter by; the index has: {known}.")
        where = f"filter[{name!r}]"
        if isinstance(value, Mapping):
            if not value or set(value) - set(OPERATORS):
                raise ValueError(f"{where} must have one or more of {', '.join(OPERATORS)}, got {value!r}.")
            conditions += [
                (name, sign, as_field(bound, fields[name], where)) for sign, bound in value.items()
            ]
        else:
            values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
            if not values:
                raise ValueError(f"{where} is an empty list, which nothing can be in.")
            conditions.append((name, "in", [as_field(item, fields[name], where) for item in values]))
    return conditions


def as_field(value: Any, kind: str, where: str) -> Any:
    """The value as the field's type has it; a whole number may stand for a float.

    Raises: ValueError: if it is of another type, is not finite or has more than 64 bits.
    """
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind:
        raise ValueError(f"{where} must be of the field's type {kind}, got {value!r}.")
    if (kind == "float" and not math.isfinite(value)) or (kind == "int" and not -(2**63) <= value < 2**63):
        raise ValueError(f"{where} must be finite and fit in 64 bits, got {value!r}.")
    return value


def text_of_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"{where}: an id is a string or an integer, got {value!r}.")
    if not str(value).strip():
        raise ValueError(f"{where}: an id must not be blank.")
    return str(value)


def unit_rows(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rows scaled to length 1.

    Raises: ValueError: if one has a length of 0, or a number that is not finite.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    for name, length in zip(names, lengths[:, 0].tolist(), strict=True):
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"The embedding of {name} is 0 or not finite.")
    return (rows / lengths).astype(np.float32)
