"""A `SearchIndex` in a folder, kept by LanceDB."""

import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import InputError, UnreadableError, import_extra
from ..files import LOCK
from .records import BUILT_IN, COLLECTION, METADATA_KEY, Filter, Hit, as_hit

TYPES = {"str": "string", "int": "int64", "float": "double", "bool": "bool"}  # of metadata, and Arrow's names
import_engine = partial(import_extra, extra="index", purpose="an index in a folder")


class BusyError(UnreadableError, BlockingIOError):
    """Another process changed the index at the same moment."""


class FolderStore:
    """A LanceDB table in a folder: files that any number of processes may read and write.

    It knows nothing of models. Where its engine fails, it raises an UnreadableError that says what to do.

    Every write commits a new version of the table with one file, so a process that is killed leaves the version before.
    Writers take turns by a lock, which the system frees when they are killed; readers need none, and see each at once.

    Below `ann_threshold` rows, and for rows since the last `optimize`, the query is compared with every row. Above,
    IVF_RQ finds candidates by codes of 4 bits a number (RaBitQ, Gao and Long 2024), ranked by their stored vectors.
    """

    ann_threshold = 20_000  # 36 ms of a core a query, or 9 with the index, at 768 dimensions (docs/decisions.md, D48)
    nprobes = 64  # partitions, which hold 262,144 rows; millions may need more (D49)
    refine_factor = 5  # so many times top_k are ranked by their stored vectors
    lock_seconds = 60.0  # a batch of records is written in less

    def __init__(self, address: str) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # before the import: it warns of every table that it creates
        self.path = Path(os.path.expanduser(address))
        self._lancedb = import_engine("lancedb")
        self._connect = partial(self._lancedb.connect, self.path, read_consistency_interval=timedelta(0))
        self._indexes = import_engine("lancedb.index")
        self._arrow = import_engine("pyarrow")
        self.ann: Any = None  # set by benchmarks only: another LanceDB index in place of IVF_RQ
        self._table: Any = None
        files = self.path / f"{COLLECTION}.lance"
        others = [path for path in self.path.glob("*") if path.name not in (LOCK, files.name)]
        if any((files / "_versions").glob("*")):
            with self._errors():
                self._table = self._connect().open_table(COLLECTION)
            if METADATA_KEY.encode() not in (self._table.schema.metadata or {}):
                raise UnreadableError(f"{self.path} was not made by tinybert_hf. Name another folder.")
        elif others or self.path.is_file() or any((files / "data").glob("*")):  # else new, or killed before it wrote
            remedy = f"There is nothing in {files / '_versions'}. Name another folder, or restore a copy."
            raise UnreadableError(f"{self.path} is no search index, or files of it are missing. {remedy}")

    @contextmanager
    def _errors(self, conditions: Filter = ()) -> Iterator[None]:
        """LanceDB raises ValueError and RuntimeError for what is wrong with files or an expression, and panics of Rust."""
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ in ("PanicException", "RustPanic")  # one of them is no Exception
            if not panicked and not isinstance(error, (OSError, RuntimeError, ValueError)):
                raise
            if isinstance(error, Timeout) or "commit conflict" in str(error):
                problem = f"Another process changed the index {self.path} at the same moment."
                raise BusyError(f"{problem} Nothing is lost: run the same again.") from error
            if isinstance(conditions, str) and str(error).startswith("Invalid input"):
                raise InputError(f"The index {self.path} does not take this filter: {error}") from error
            remedy = "If a file is missing or damaged, restore a copy, or remove the folder and build the index again."
            problem = f"The index {self.path} could not be read or written: {error} {remedy}"
            if "No space left" in str(error):
                problem = f"The disk of the index {self.path} is full. Nothing is lost: make room, run the same again."
            raise UnreadableError(problem) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._errors():
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / LOCK, timeout=self.lock_seconds):
                yield

    def description(self) -> dict[str, Any] | None:
        """What `create` was given; None where there is no index yet."""
        return None if self._table is None else json.loads(self._table.schema.metadata[METADATA_KEY.encode()])

    def create(self, description: dict[str, Any]) -> None:
        vector = self._arrow.list_(self._arrow.float32(), description["dimension"])
        kinds = {"id": "string", "text": "string", "embedding": vector}
        columns = [self._arrow.field(name, kind, nullable=False) for name, kind in kinds.items()]
        schema = self._arrow.schema(columns, metadata={METADATA_KEY: json.dumps(description)})
        with self._writing():
            if any((self.path / f"{COLLECTION}.lance" / "_versions").glob("*")):  # another process was faster
                self._table = self._connect().open_table(COLLECTION)
                return
            self._table = self._connect().create_table(COLLECTION, schema=schema, exist_ok=True)
            self._table.create_index("text", config=self._indexes.FTS(base_tokenizer="icu/split"))

    def fields(self) -> dict[str, str]:
        """Metadata fields and the names of their types."""
        names = {arrow: kind for kind, arrow in TYPES.items()}
        schema = () if self._table is None else self._table.schema
        return {field.name: names[str(field.type)] for field in schema if field.name not in BUILT_IN}

    def add_fields(self, fields: Mapping[str, str]) -> None:
        with self._writing():
            new = [self._arrow.field(name, TYPES[kind]) for name, kind in fields.items() if name not in self.fields()]
            if new:  # another process was not faster
                self._table.add_columns(self._arrow.schema(new))

    def count(self) -> int:
        with self._errors():
            return 0 if self._table is None else self._table.count_rows()

    def rows(self, conditions: Filter, fields: Sequence[str]) -> list[dict[str, Any]]:
        """The id and these fields of all records that the conditions select."""
        if self._table is None:
            return []
        with self._errors():
            selected = self._table.search().where(_expression(conditions)).select(["id", *fields])
            return selected.limit(None).to_arrow().to_pylist()

    def write(self, rows: Sequence[dict[str, Any]], replace: bool) -> int:
        """Write all or none to the disk; how many. Without `replace`, no row whose id another process has stored."""
        table = self._arrow.Table.from_pylist(rows, schema=self._table.schema)
        merge = self._table.merge_insert("id").when_not_matched_insert_all()
        with self._writing():
            done = (merge.when_matched_update_all() if replace else merge).execute(table)
        return done.num_inserted_rows + done.num_updated_rows

    def delete(self, ids: Sequence[str]) -> None:
        with self._writing():
            self._table.delete(_expression([("id", "in", list(ids))]))

    def optimize(self) -> None:
        """Merge small files, bring the indexes up to date, and make those that are not there yet."""
        with suppress(BusyError), self._errors():  # if another process does it, that is enough
            indexed = {column for index in self._table.list_indices() for column in index.columns}
            if "text" not in indexed:  # killed between making the table and its index
                self._table.create_index("text", config=self._indexes.FTS(base_tokenizer="icu/split"))
            if self._table.count_rows() >= self.ann_threshold and "embedding" not in indexed:
                quantized = self._indexes.IvfRq(distance_type="dot", num_bits=4)
                if self._table.schema.field("embedding").type.list_size % 8:  # LanceDB's RaBitQ takes no other width
                    quantized = self._indexes.IvfSq(distance_type="dot")
                self._table.create_index("embedding", config=self.ann or quantized)
            self._table.optimize(cleanup_older_than=timedelta(minutes=1))  # no search still needs those

    def dense(self, embeddings: np.ndarray, top_k: int, conditions: Filter) -> list[list[Hit]]:
        fields = self.fields()
        with self._errors(conditions):
            query = self._table.search(list(embeddings), vector_column_name="embedding").distance_type("dot")
            query = query.nprobes(self.nprobes).refine_factor(self.refine_factor)
            rows = self._rows(query, top_k, conditions, [*fields, "_distance"])
        hits: list[list[Hit]] = [[] for _ in embeddings]
        for row in rows:
            hits[row.get("query_index", 0)].append(as_hit(row, 1 - row["_distance"], fields))
        return hits

    def bm25(self, queries: Sequence[str], top_k: int, conditions: Filter) -> list[list[Hit]]:
        match = import_engine("lancedb.query").MatchQuery
        fields = self.fields()
        with self._errors(conditions):
            searches = [self._table.search(match(text, "text"), query_type="fts") for text in queries]
            found = [self._rows(search, top_k, conditions, [*fields, "_score"]) for search in searches]
        return [[as_hit(row, row["_score"], fields) for row in rows] for rows in found]

    def _rows(self, query: Any, top_k: int, conditions: Filter, columns: Sequence[str]) -> list[dict[str, Any]]:
        if conditions:
            query = query.where(_expression(conditions), prefilter=True)
        limit = max(1, min(top_k, self.count()))
        return query.select(["id", "text", *columns]).limit(limit).to_arrow().to_pylist()

    def info(self) -> dict[str, Any]:
        with self._errors():
            indexes = {index.columns[0]: index for index in self._table.list_indices()}
        ann = indexes.get("embedding")
        return {
            "store": f"folder (LanceDB {self._lancedb.__version__})",
            "vector_index": f"{ann.index_type}, {ann.num_unindexed_rows:,} rows outside" if ann else "none: exact",
            "bm25": "text" in indexes,
            "bytes": sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file()),
        }


def _expression(conditions: Filter) -> Any:
    """A filter as LanceDB builds it, which quotes names and values. A string is SQL already."""
    if isinstance(conditions, str):
        return conditions
    engine = import_engine("lancedb.expr")
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "in": engine.Expr.isin}
    return reduce(operator.and_, (compare[sign](engine.col(field), value) for field, sign, value in conditions))
