"""The two homes of a `SearchIndex`: a folder, kept by LanceDB, and a Milvus server or cluster.

`pip install 'tinybert_hf[index]'` brings both clients. A home stores records and finds them by vector, by word and by
both, with its engine's own means; it knows nothing of models. Every failure of an engine leaves this file as an OSError
(a server's as a ConnectionError) that names the address and what to do.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np

from .data import import_extra

COLLECTION = "passages"  # the table of a folder, and a server's collection where the address names none
METADATA_KEY = "tinybert_hf"  # what the description is stored under
BUILT_IN = ("id", "text", "embedding")  # fields that every record has
# What a metadata field can hold, by the name that is stored with the index.
FIELD_TYPES = ("str", "int", "float", "bool")
OPERATORS = ("<", "<=", ">", ">=")
FUSED = 100  # best of each side that reciprocal rank fusion sees
RRF_K = 60  # Cormack et al. 2009; both engines' default

Filter = Sequence[tuple[str, str, Any]]  # (field, "in" or one of OPERATORS, value); all must hold
Hits = list[dict[str, Any]]  # best first: id, score, text, and the metadata that the record has


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

    def hybrid(
        self, queries: Sequence[str], embeddings: np.ndarray, top_k: int, conditions: Filter
    ) -> list[Hits]: ...

    def info(self) -> dict[str, Any]:
        """What the engine tells of its index, for `info`."""


import_engine = partial(import_extra, extra="index", purpose="an index")


def open_home(address: str, token: str | None) -> Home:
    """The home that an address names.

    Raises:
        ValueError: if the address or the token does not fit.
        OSError: if what is there is damaged, is no index, or does not answer.
    """
    if address.startswith(("http://", "https://")):
        return MilvusHome(address, token)
    if "://" in address:
        raise ValueError(f"An index is a folder or http(s)://HOST:PORT of a Milvus server, not {address}.")
    if token is not None:
        raise ValueError(f"A token is for a server, and {address} is a folder. Leave the token out.")
    return FolderHome(address)


# ---- A folder ----


class FolderHome:
    """A LanceDB table in a folder: files that any number of processes may read and write.

    Every write is a new version of the table, committed by one file: a process that is killed leaves the version
    before. Below `ann_threshold` rows, and for rows added since the last `settle`, the search compares the query with
    every row; above, IVF_RQ finds candidates by codes of 4 bits for each number (RaBitQ, Gao and Long 2024) and ranks
    them by their stored vectors.
    """

    # Measured (EXPERIMENTS.md): here, comparing a query with every row takes 36 ms of a core at 768 dimensions, and with
    # the index 9; at 10,000 rows 23.
    ann_threshold = 20_000
    # Measured on 100,000 rows, of which this probes all: recall 1.0 at 10 (EXPERIMENTS.md). 64 partitions hold 262,144
    # rows; millions may want more.
    nprobes = 64
    refine_factor = 5  # times top_k are ranked by their stored vectors
    # Files of older versions go once no search that runs can still need them.
    keep_versions = timedelta(minutes=1)

    def __init__(self, address: str) -> None:
        os.environ.setdefault(
            "LANCEDB_LOG", "error"
        )  # it warns of every table that it creates; read at the import
        self.path = Path(address).expanduser()
        self._lancedb = import_engine("lancedb")
        self._indexes = import_engine("lancedb.index")
        self.ann: Any = None  # None: IVF_RQ
        self._table: Any = None
        if self.path.is_file():
            raise OSError(f"{self.path} is a file; an index is a folder.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        files = self.path / f"{COLLECTION}.lance"
        if not any((files / "_versions").glob("*")):
            if files.is_dir() and not any((files / "data").glob("*")):
                return  # killed before anything was written
            raise OSError(
                f"{self.path} is no search index, or files of it are missing: there is nothing in "
                f"{COLLECTION}.lance/_versions. Name another folder, or restore a copy."
            )
        with self._errors():
            self._table = self._connect().open_table(COLLECTION)
        if METADATA_KEY.encode() not in (self._table.schema.metadata or {}):
            raise OSError(f"{self.path} was not made by tinybert_hf. Name another folder.")

    def _connect(self) -> Any:
        # An interval of 0: every call sees what other processes have written.
        return self._lancedb.connect(self.path, read_consistency_interval=timedelta(0))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """LanceDB raises ValueError and RuntimeError for what is wrong with files."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if "commit conflict" in str(error):
                raise BlockingIOError(
                    f"Another process changed the index {self.path} at the same moment. Nothing is lost: run the same again."
                ) from error
            raise OSError(
                f"The index {self.path} could not be read or written: {error} If a file is missing or damaged, restore "
                "a copy of the folder, or remove it and build the index again."
            ) from error

    def description(self) -> dict[str, Any] | None:
        if self._table is None:
            return None
        return json.loads(self._table.schema.metadata[METADATA_KEY.encode()])

    def create(self, description: dict[str, Any]) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("embedding", pa.list_(pa.float32(), description["dimension"]), nullable=False),
            ],
            metadata={METADATA_KEY: json.dumps(description)},
        )
        with self._errors():
            self._table = self._connect().create_table(COLLECTION, schema=schema, exist_ok=True)
            self._table.create_index("text", config=self._indexes.FTS())

    def fields(self) -> dict[str, str]:
        if self._table is None:
            return {}
        names = {"string": "str", "int64": "int", "double": "float", "bool": "bool"}
        return {
            field.name: names[str(field.type)] for field in self._table.schema if field.name not in BUILT_IN
        }

    def add_fields(self, fields: Mapping[str, str]) -> None:
        import pyarrow as pa

        types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        with self._errors():
            self._table.add_columns(pa.schema([pa.field(name, types[kind]) for name, kind in fields.items()]))

    def count(self) -> int:
        if self._table is None:
            return 0
        with self._errors():
            return self._table.count_rows()

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        if self._table is None or not ids:
            return {}
        with self._errors():
            rows = self._table.search().where(_sql([("id", "in", list(ids))])).select(["id", "text"])
            found = rows.limit(None).to_arrow()
        return dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    def write(self, records: Sequence[Record], replace: bool) -> None:
        import pyarrow as pa

        schema = self._table.schema
        vectors = np.stack([record.embedding for record in records]).astype(np.float32, copy=False)
        columns: dict[str, Any] = {
            name: pa.array([record.metadata.get(name) for record in records], schema.field(name).type)
            for name in self.fields()
        }
        columns["id"] = pa.array([record.id for record in records])
        columns["text"] = pa.array([record.text for record in records])
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        rows = pa.table([columns[name] for name in schema.names], schema=schema)
        with self._errors():
            if not replace:
                self._table.add(rows)
                return
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)

    def delete(self, ids: Sequence[str]) -> None:
        with self._errors():
            self._table.delete(_sql([("id", "in", list(ids))]))

    def settle(self) -> None:
        """Merge small files, bring the indexes up to date; make those that are not there yet."""
        with suppress(BlockingIOError), self._errors():  # if another process does it, that is enough
            indexed = {column for index in self._table.list_indices() for column in index.columns}
            if "text" not in indexed:  # killed between making the table and its index
                self._table.create_index("text", config=self._indexes.FTS())
            if self._table.count_rows() >= self.ann_threshold and "embedding" not in indexed:
                self._table.create_index("embedding", config=self.ann or self._rabitq())
            self._table.optimize(cleanup_older_than=self.keep_versions)

    def _rabitq(self) -> Any:
        width = self._table.schema.field("embedding").type.list_size
        if width % 8:  # LanceDB's RaBitQ takes no other width
            return self._indexes.IvfSq(distance_type="dot")
        return self._indexes.IvfRq(distance_type="dot", num_bits=4)

    def dense(self, embeddings: np.ndarray, top_k: int, conditions: Filter) -> list[Hits]:
        with self._errors():
            query = self._table.search(list(embeddings), vector_column_name="embedding").distance_type("dot")
            query = query.nprobes(self.nprobes).refine_factor(self.refine_factor)
            rows = self._rows(query, top_k, conditions, "_distance")
        hits: list[Hits] = [[] for _ in embeddings]
        for row in rows:
            distance = row.pop("_distance")
            hits[row.pop("query_index", 0)].append(self._hit(row, 1 - distance))
        return hits

    def bm25(self, queries: Sequence[str], top_k: int, conditions: Filter) -> list[Hits]:
        match = import_engine("lancedb.query").MatchQuery
        hits = []
        for text in queries:
            with self._errors():
                query = self._table.search(match(text, "text"), query_type="fts")
                rows = self._rows(query, top_k, conditions, "_score")
            hits.append([self._hit(row, row.pop("_score")) for row in rows])
        return hits

    def hybrid(
        self, queries: Sequence[str], embeddings: np.ndarray, top_k: int, conditions: Filter
    ) -> list[Hits]:
        reranker = import_engine("lancedb.rerankers").RRFReranker(K=RRF_K)
        hits = []
        for text, vector in zip(queries, embeddings, strict=True):
            with self._errors():
                query = self._table.search(
                    query_type="hybrid", vector_column_name="embedding", fts_columns="text"
                )
                query = query.vector(vector).text(text).distance_type("dot").rerank(reranker)
                query = query.nprobes(self.nprobes).refine_factor(self.refine_factor)
                rows = self._rows(query, max(top_k, FUSED), conditions)[:top_k]
            hits.append([self._hit(row, row.pop("_relevance_score")) for row in rows])
        return hits

    def _rows(
        self, query: Any, top_k: int, conditions: Filter, score: str | None = None
    ) -> list[dict[str, Any]]:
        """The best rows; the score of a hybrid query comes of itself."""
        if conditions:
            query = query.where(_sql(conditions), prefilter=True)
        query = query.select(["id", "text", *self.fields(), *([score] if score else [])])
        return query.limit(top_k).to_arrow().to_pylist()

    def _hit(self, row: dict[str, Any], score: float) -> dict[str, Any]:
        metadata = {name: row[name] for name in self.fields() if row[name] is not None}
        return {"id": row["id"], "score": score, "text": row["text"], **metadata}

    def info(self) -> dict[str, Any]:
        with self._errors():
            indexes = {index.columns[0]: index for index in self._table.list_indices()}
        ann = indexes.get("embedding")
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        return {
            "home": f"folder (LanceDB {self._lancedb.__version__})",
            "vector_index": f"{ann.index_type}, {ann.num_unindexed_rows:,} rows outside"
            if ann
            else "none: exact",
            "bm25": "text" in indexes,
            "bytes": size,
        }


def _sql(conditions: Filter) -> str:
    """A filter in LanceDB's SQL. Names are checked where a field is made; they stand in backticks for their case."""
    parts = []
    for field, operator, value in conditions:
        if operator == "in":
            parts.append(f"`{field}` IN ({', '.join(map(_sql_literal, value))})")
        else:
            parts.append(f"`{field}` {operator} {_sql_literal(value)}")
    return " AND ".join(parts)


def _sql_literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return json.dumps(value)  # true and false, numbers


# ---- A server ----


class MilvusHome:
    """A collection of a Milvus server or cluster.

    `http(s)://HOST:PORT/COLLECTION?shards=S&replicas=R`: the collection is `passages`, shards and replicas 1 if left out;
    both count where the collection is made.
    """

    ann_threshold = 20_000  # as a folder's
    timeout = 60.0  # seconds for one answer; building an index takes as long as it takes
    max_bytes = 32 * 2**20  # of one request; the server takes 64 MB
    max_text_bytes, max_id_bytes = 65_535, 512

    def __init__(self, address: str, token: str | None) -> None:
        pymilvus = import_engine("pymilvus")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every error that it raises
        self._milvus = pymilvus
        self.ann_type, self.ann = "HNSW", {"M": 32, "efConstruction": 200}
        self.effort = {"ef": 128}  # how far a search goes
        parts = urlsplit(address)
        self.collection = parts.path.strip("/") or COLLECTION
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", self.collection, flags=re.ASCII):
            raise ValueError(
                f"{self.collection!r} in {address} cannot be a collection's name: letters, digits and _."
            )
        self.options = {"shards": 1, "replicas": 1}
        for name, values in parse_qs(parts.query, keep_blank_values=True).items():
            if name not in self.options or not values[-1].isdecimal() or int(values[-1]) < 1:
                raise ValueError(f"{address}: after the ? may stand shards=NUMBER and replicas=NUMBER.")
            self.options[name] = int(values[-1])
        host = parts.netloc if parts.port else f"{parts.netloc}:19530"
        self.uri = f"{parts.scheme}://{host}"
        with self._errors():
            self.client = pymilvus.MilvusClient(uri=self.uri, token=token or "", timeout=10)
            self.version = self.client.get_server_version()
            self._properties: dict[str, Any] | None = None
            self._has_bm25 = False
            if self.client.has_collection(self.collection, timeout=self.timeout):
                self._open()

    def _open(self) -> None:
        described = self.client.describe_collection(self.collection, timeout=self.timeout)
        stored = described["properties"].get(METADATA_KEY)
        if stored is None:
            raise OSError(
                f"The collection {self.collection} of {self.uri} was not made by tinybert_hf. Name another collection: "
                f"{self.uri}/NAME."
            )
        self._properties = json.loads(stored)
        self._has_bm25 = bool(described.get("functions"))
        self._complete()  # a process may have been killed while it made the collection or its index

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._milvus.MilvusException as error:
            raise ConnectionError(
                f"The Milvus server {self.uri} is away or refused: {error.message} What it acknowledged is stored. See that "
                "it runs, that address and token are right, and run the same again."
            ) from error

    def description(self) -> dict[str, Any] | None:
        return self._properties and self._properties["description"]

    def create(self, description: dict[str, Any]) -> None:
        types = self._milvus.DataType
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=True)
        self._has_bm25 = self._server_has_bm25()
        schema.add_field("id", types.VARCHAR, max_length=self.max_id_bytes, is_primary=True)
        analyzer = {"enable_analyzer": True} if self._has_bm25 else {}
        schema.add_field("text", types.VARCHAR, max_length=self.max_text_bytes, **analyzer)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=description["dimension"])
        if self._has_bm25:
            schema.add_field("bm25", types.SPARSE_FLOAT_VECTOR)
            schema.add_function(
                self._milvus.Function(
                    name="bm25",
                    function_type=self._milvus.FunctionType.BM25,
                    input_field_names=["text"],
                    output_field_names=["bm25"],
                )
            )
        properties = {"description": description, "fields": {}}
        with self._errors():
            self.client.create_collection(
                self.collection,
                schema=schema,
                properties={METADATA_KEY: json.dumps(properties)},
                num_shards=self.options["shards"],
                consistency_level="Session",  # a client sees what it has written
                timeout=self.timeout,
            )
            self._complete()
        self._properties = properties

    def _complete(self, embedding_index: str = "FLAT") -> None:
        """Make the indexes that are missing, and have the collection in the servers' memory."""
        wanted = {"embedding": (embedding_index, "IP", self.ann if embedding_index != "FLAT" else {})}
        if self._has_bm25:
            wanted["bm25"] = ("SPARSE_INVERTED_INDEX", "BM25", {})
        for field, (kind, metric, parameters) in wanted.items():
            if not self.client.list_indexes(self.collection, field_name=field):
                indexes = self.client.prepare_index_params()
                indexes.add_index(field, index_type=kind, metric_type=metric, params=parameters)
                self.client.create_index(self.collection, indexes)
        if "NotLoad" in str(self.client.get_load_state(self.collection)["state"]):
            self.client.load_collection(self.collection, replica_number=self.options["replicas"])

    def _server_has_bm25(self) -> bool:
        """Since 2.5. `v2.3.5-lite` and `milvus_lite-3.2.2` are versions too."""
        found = re.search(r"(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) >= (2, 5)

    def fields(self) -> dict[str, str]:
        return self._properties["fields"] if self._properties else {}

    def add_fields(self, fields: Mapping[str, str]) -> None:
        assert self._properties is not None
        self._properties["fields"] |= fields
        with self._errors():
            self.client.alter_collection_properties(
                self.collection, {METADATA_KEY: json.dumps(self._properties)}, timeout=self.timeout
            )

    def count(self) -> int:
        if self._properties is None:
            return 0
        with self._errors():
            (row,) = self.client.query(
                self.collection,
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=self.timeout,
            )
        return row["count(*)"]

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        if self._properties is None or not ids:
            return {}
        with self._errors():
            rows = self.client.query(
                self.collection,
                filter=_expression([("id", "in", list(ids))]),
                output_fields=["id", "text"],
                consistency_level="Strong",  # sees what another process wrote before it was killed
                timeout=self.timeout,
            )
        return {row["id"]: row["text"] for row in rows}

    def write(self, records: Sequence[Record], replace: bool) -> None:
        for record in records:
            for name, limit in (("id", self.max_id_bytes), ("text", self.max_text_bytes)):
                size = len(getattr(record, name).encode())
                if size > limit:
                    raise ValueError(
                        f"The {name} of the record {record.id[:60]!r} has {size:,} bytes; Milvus stores {limit:,} at "
                        "most. Split the text into passages, or use a folder."
                    )
        rows, size = [], 0
        send = self.client.upsert if replace else self.client.insert
        with self._errors():
            for record in records:
                rows.append(
                    {**record.metadata, "id": record.id, "text": record.text, "embedding": record.embedding}
                )
                size += record.embedding.nbytes + len(record.text.encode())
                if size >= self.max_bytes:
                    send(self.collection, rows, timeout=self.timeout)
                    rows, size = [], 0
            if rows:
                send(self.collection, rows, timeout=self.timeout)

    def delete(self, ids: Sequence[str]) -> None:
        with self._errors():
            self.client.delete(self.collection, ids=list(ids), timeout=self.timeout)

    def settle(self) -> None:
        """From `ann_threshold` rows on, HNSW in place of the exact index; the server keeps it up to date."""
        if self.count() < self.ann_threshold or self._index_type() != "FLAT":
            return
        with self._errors():
            self.client.flush(self.collection)
            self.client.release_collection(self.collection)
            self.client.drop_index(self.collection, "embedding")
            self._complete(self.ann_type)

    def _index_type(self) -> str:
        with self._errors():
            return self.client.describe_index(self.collection, "embedding")["index_type"]

    def dense(self, embeddings: np.ndarray, top_k: int, conditions: Filter) -> list[Hits]:
        with self._errors():
            found = self.client.search(
                self.collection,
                data=list(embeddings),
                anns_field="embedding",
                limit=top_k,
                search_params=self._effort(top_k),
                **self._query_options(conditions),
            )
        return self._hits(found)

    def bm25(self, queries: Sequence[str], top_k: int, conditions: Filter) -> list[Hits]:
        self._require_bm25()
        with self._errors():
            found = self.client.search(
                self.collection,
                data=list(queries),
                anns_field="bm25",
                limit=top_k,
                search_params={"metric_type": "BM25"},
                **self._query_options(conditions),
            )
        # Milvus' own server gives BM25 as a similarity, milvus-lite as a distance below 0.
        return [[hit | {"score": abs(hit["score"])} for hit in hits] for hits in self._hits(found)]

    def hybrid(
        self, queries: Sequence[str], embeddings: np.ndarray, top_k: int, conditions: Filter
    ) -> list[Hits]:
        self._require_bm25()
        depth = max(top_k, FUSED)
        expression = _expression(conditions)
        requests = [
            self._milvus.AnnSearchRequest(
                data=data, anns_field=field, param=parameters, limit=depth, expr=expression
            )
            for data, field, parameters in (
                (list(embeddings), "embedding", self._effort(depth)),
                (list(queries), "bm25", {"metric_type": "BM25"}),
            )
        ]
        options = self._query_options(conditions)
        del options["filter"]  # each request has it
        with self._errors():
            found = self.client.hybrid_search(
                self.collection, requests, self._milvus.RRFRanker(RRF_K), limit=top_k, **options
            )
        return self._hits(found)

    def _effort(self, top_k: int) -> dict[str, Any]:
        return {
            "metric_type": "IP",
            "params": {name: max(value, top_k) for name, value in self.effort.items()},
        }

    def _require_bm25(self) -> None:
        if not self._has_bm25:
            raise ValueError(
                f"The index {self.uri}/{self.collection} has no BM25: Milvus has it since 2.5, and this one was made on "
                f"an older server (it is {self.version} now). Search with mode dense, build the index on a newer "
                "server, or in a folder."
            )

    def _query_options(self, conditions: Filter) -> dict[str, Any]:
        return {
            "filter": _expression(conditions),
            "output_fields": ["id", "text", *self.fields()],
            "timeout": self.timeout,
        }

    def _hits(self, found: Any) -> list[Hits]:
        return [
            [
                {
                    "id": hit["entity"]["id"],
                    "score": hit["distance"],
                    "text": hit["entity"]["text"],
                    **{
                        name: hit["entity"][name]
                        for name in self.fields()
                        if hit["entity"].get(name) is not None
                    },
                }
                for hit in hits
            ]
            for hits in found
        ]

    def info(self) -> dict[str, Any]:
        index_type = self._index_type()
        return {
            "home": f"server (Milvus {self.version}, collection {self.collection})",
            "vector_index": "none: exact" if index_type == "FLAT" else index_type,
            "bm25": self._has_bm25,
        }


def _expression(conditions: Filter) -> str:
    """A filter in Milvus' language. Metadata is in the dynamic field, addressed so that no name is a reserved word."""
    parts = []
    for field, operator, value in conditions:
        name = field if field in BUILT_IN else f'$meta["{field}"]'
        parts.append(f"{name} {operator} {json.dumps(value, ensure_ascii=False)}")
    return " and ".join(parts)
