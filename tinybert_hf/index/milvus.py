"""A `SearchIndex` on a Milvus server or cluster."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ..errors import InputError, UnreadableError, import_extra
from .records import BUILT_IN, COLLECTION, METADATA_KEY, Filter, Hit, as_hit


class ServerError(UnreadableError, ConnectionError):
    """The server is away, or refused."""


class MilvusStore:
    """A collection of a Milvus server or cluster. `shards` and `replicas` matter only when the collection is made."""

    ann_threshold = 20_000  # as a folder's (docs/decisions.md, D48)
    timeout = 60.0  # seconds for one answer; building an index takes as long as it takes
    max_bytes = 32 * 2**20  # of one request; the server takes 64 MB
    max_text_bytes, max_id_bytes = 65_535, 512  # Milvus' own limits

    def __init__(self, address: str, token: str | None) -> None:
        self._milvus = import_extra("pymilvus", "milvus", "an index on a Milvus server")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every error that it raises
        self._strong = {"consistency_level": "Strong", "timeout": self.timeout}  # sees all that others have written
        # The index of large collections, and how far a search in it goes (docs/decisions.md, D50). Benchmarks set more.
        self.ann_type, self.ann, self.effort = "HNSW", {"M": 32, "efConstruction": 200}, {"ef": 128}
        try:
            parts = urlsplit(address)
            self.uri = f"{parts.scheme}://{parts.netloc}{'' if parts.port else ':19530'}"
        except ValueError as error:
            raise InputError(f"{address} is no address of a server: {error}.") from error
        self.collection = parts.path.strip("/") or COLLECTION
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", self.collection, flags=re.ASCII):
            raise InputError(f"{self.collection!r} in {address} cannot be a collection's name: letters, digits and _.")
        self.options = {"shards": 1, "replicas": 1}
        for name, values in parse_qs(parts.query, keep_blank_values=True).items():
            if name not in self.options or not values[-1].isdecimal() or int(values[-1]) < 1:
                raise InputError(f"{address}: after the ?, only shards=NUMBER and replicas=NUMBER are allowed.")
            self.options[name] = int(values[-1])
        with self._errors():
            self.client = self._milvus.MilvusClient(uri=self.uri, token=token or "", timeout=10)
            self.version = self.client.get_server_version()
            self._properties: dict[str, Any] = {}  # until there is a collection
            self._has_bm25 = False
            if self.client.has_collection(self.collection, timeout=self.timeout):
                self._open()

    def _open(self) -> None:
        """Read what is stored with the collection, by this process or another one."""
        described = self.client.describe_collection(self.collection, timeout=self.timeout)
        stored = described["properties"].get(METADATA_KEY)
        if stored is None:
            raise UnreadableError(f"{self.collection} of {self.uri} was not made by tinybert_hf. Name another one.")
        self._properties = json.loads(stored)
        self._has_bm25 = bool(described.get("functions"))
        self._complete()  # a process may have been killed while it made the collection or its index

    @contextmanager
    def _errors(self, conditions: Filter = ()) -> Iterator[None]:
        try:
            yield
        except self._milvus.MilvusException as error:
            if isinstance(conditions, str) and ("query plan" in error.message or error.code == 6):  # 6: milvus-lite
                raise InputError(f"{self.uri}/{self.collection} does not take this filter: {error.message}") from error
            problem = f"The Milvus server {self.uri} did not answer, or refused: {error.message}"
            remedy = "Check that it runs and that address and token are right, then run the same again."
            raise ServerError(f"{problem} What it confirmed is stored. {remedy}") from error

    def description(self) -> dict[str, Any] | None:
        return self._properties.get("description")

    def create(self, description: dict[str, Any]) -> None:
        types = self._milvus.DataType
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=True)
        version = re.search(r"(\d+)\.(\d+)", self.version)  # `v2.3.5-lite` and `milvus_lite-3.2.2` are versions too
        has_bm25 = version is not None and (int(version[1]), int(version[2])) >= (2, 5)
        schema.add_field("id", types.VARCHAR, max_length=self.max_id_bytes, is_primary=True)
        analyzer = {"enable_analyzer": True} if has_bm25 else {}
        schema.add_field("text", types.VARCHAR, max_length=self.max_text_bytes, **analyzer)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=description["dimension"])
        if has_bm25:
            schema.add_field("bm25", types.SPARSE_FLOAT_VECTOR)
            schema.add_function(self._milvus.Function("bm25", self._milvus.FunctionType.BM25, ["text"], ["bm25"]))
        properties = {METADATA_KEY: json.dumps({"description": description, "fields": {}})}
        options: dict[str, Any] = {"properties": properties, "num_shards": self.options["shards"]}
        options |= {"consistency_level": "Session", "timeout": self.timeout}  # a client sees what it has written
        with self._errors():
            if not self.client.has_collection(self.collection, timeout=self.timeout):  # no other process was faster
                self.client.create_collection(self.collection, schema=schema, **options)
            self._open()

    def _complete(self, embedding_index: str = "FLAT") -> None:
        """Make the indexes that are missing, and load the collection into the servers' memory."""
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

    def fields(self) -> dict[str, str]:
        return self._properties.get("fields", {})

    def add_fields(self, fields: Mapping[str, str]) -> None:
        with self._errors():
            self._open()  # another process may have added some
            self._properties["fields"] = {**fields, **self._properties["fields"]}
            stored = {METADATA_KEY: json.dumps(self._properties)}
            self.client.alter_collection_properties(self.collection, stored, timeout=self.timeout)

    def count(self) -> int:
        if not self._properties:
            return 0
        with self._errors():
            return self.client.query(self.collection, output_fields=["count(*)"], **self._strong)[0]["count(*)"]

    def rows(self, conditions: Filter, fields: Sequence[str]) -> list[dict[str, Any]]:
        if not self._properties:
            return []
        found: list[dict[str, Any]] = []
        with self._errors():
            columns, chosen = ["id", *fields], _expression(conditions)
            pages = self.client.query_iterator(self.collection, filter=chosen, output_fields=columns, **self._strong)
            for page in iter(pages.next, []):
                found += page
                pages._next_id = json.dumps(page[-1]["id"], ensure_ascii=False)[1:-1]  # goes between quotes as it is
        return found

    def write(self, rows: Sequence[dict[str, Any]], replace: bool) -> int:
        """Write the rows; how many. Without `replace`, none that another process has stored, but at this very moment."""
        for row in rows:
            for name, limit in (("id", self.max_id_bytes), ("text", self.max_text_bytes)):
                if (size := len(row[name].encode())) > limit:
                    place = f"The {name} of the record {row['id'][:60]!r}"
                    raise InputError(f"{place} has {size:,} bytes; Milvus stores {limit:,}. Split it, or use a folder.")
        step = max(1, self.max_bytes // max(row["embedding"].nbytes + len(row["text"].encode()) for row in rows))
        if not replace:
            stored = {row["id"] for row in self.rows([("id", "in", [row["id"] for row in rows])], [])}
            rows = [row for row in rows if row["id"] not in stored]
        with self._errors():
            for start in range(0, len(rows), step):
                self.client.upsert(self.collection, rows[start : start + step], timeout=self.timeout)
        return len(rows)

    def delete(self, ids: Sequence[str]) -> None:
        with self._errors():
            self.client.delete(self.collection, filter=_expression([("id", "in", list(ids))]), timeout=self.timeout)

    def optimize(self) -> None:
        """From `ann_threshold` rows on, HNSW in place of the exact index; the server keeps it up to date."""
        if self.count() >= self.ann_threshold and self._index_type() == "FLAT":
            with self._errors():
                self.client.flush(self.collection)
                self.client.release_collection(self.collection)
                self.client.drop_index(self.collection, "embedding")
                self._complete(self.ann_type)

    def _index_type(self) -> str:
        with self._errors():
            return self.client.describe_index(self.collection, "embedding")["index_type"]

    def dense(self, embeddings: np.ndarray, top_k: int, conditions: Filter) -> list[list[Hit]]:
        search = {"metric_type": "IP", "params": {name: max(value, top_k) for name, value in self.effort.items()}}
        return self._search(list(embeddings), top_k, conditions, anns_field="embedding", search_params=search)

    def bm25(self, queries: Sequence[str], top_k: int, conditions: Filter) -> list[list[Hit]]:
        if not self._has_bm25:
            made = f"this one was made on an older server (it is {self.version} now)"
            remedy = "Search with mode dense, or build the index on a newer server, or in a folder."
            raise InputError(f"{self.uri}/{self.collection} has no BM25: Milvus has it since 2.5; {made}. {remedy}")
        search = {"anns_field": "bm25", "search_params": {"metric_type": "BM25"}}
        found = self._search(list(queries), top_k, conditions, **search)
        # Milvus' own server gives BM25 as a similarity, milvus-lite as a distance below 0.
        return [[hit | {"score": abs(hit["score"])} for hit in hits] for hits in found]

    def _search(self, data: list[Any], top_k: int, conditions: Filter, **options: Any) -> list[list[Hit]]:
        options |= {"output_fields": ["id", "text", *self.fields()], "timeout": self.timeout}
        with self._errors(conditions):
            found = self.client.search(self.collection, data, _expression(conditions), top_k, **options)
        return [[as_hit(hit["entity"], hit["distance"], self.fields()) for hit in hits] for hits in found]

    def info(self) -> dict[str, Any]:
        index_type = self._index_type()
        return {
            "store": f"server (Milvus {self.version}, collection {self.collection})",
            "vector_index": "none: exact" if index_type == "FLAT" else index_type,
            "bm25": self._has_bm25,
        }


def _expression(conditions: Filter) -> str:
    """As Milvus takes a filter. Metadata is addressed in the dynamic field, so that no name is a reserved word."""
    if isinstance(conditions, str):
        return conditions
    names = {name: name if name in BUILT_IN else f'$meta["{name}"]' for name, _, _ in conditions}
    return " and ".join(
        f"{names[name]} {sign} {json.dumps(value, ensure_ascii=False)}" for name, sign, value in conditions
    )
