"""Corpora: an index that stays, grows and is searched by meaning, by words (BM25) and by both."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from tqdm import tqdm
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .. import pipeline_tinybert
from ..convert_bert import load_config, read_prompts
from ..encoding import SearchPipeline, load_search_pipeline, with_kernels
from ..errors import InputError, UnreadableError
from ..files import sha256
from ..loading import loading
from ..progress import progress_bar
from ..ranking import BM25_WEIGHT, FUSED
from .folder import FolderStore
from .milvus import MilvusStore
from .records import NewRecord, as_field, parse_filter, parse_record, text_of_id, unit_rows

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BATCH = 2_048  # records that are encoded and acknowledged together: what a killed build loses at most

Mode = Literal["dense", "bm25", "hybrid"]  # how `SearchIndex.search` ranks


class Added(NamedTuple):
    """What became of the records given to `SearchIndex.add`."""

    added: int
    present: int  # left as they were: id and text are stored already


class Identity(NamedTuple):
    """What made the embeddings; stored with the index. Without a model: they were given."""

    model: str | None
    revision: str | None
    weights: str | None  # SHA-256 of the weights' file
    dimension: int

    def __str__(self) -> str:
        if self.model is None:
            return "embeddings that were given"
        commit = f" at {self.revision}" if self.revision else ""
        return f"{self.model}{commit} (weights {(self.weights or '')[:12]})"


def model_identity(model: str | Path, revision: str | None, truncate_dim: int | None) -> Identity:
    """Name, commit (of the Hub), SHA-256 of the weights (with the prompts, if there are any), and the width."""
    with loading(model):
        config: Any = load_config(str(model), revision)
        pipeline_tinybert.check_truncate_dim(truncate_dim, config.hidden_size)
        digests = [sha256(file) for file in weight_files(str(model), revision)]
        prompts = getattr(config, "prompts", None) or read_prompts(str(model), revision)
    if any(prompts.values()):
        digests.append(json.dumps(prompts, sort_keys=True))
    weights = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    place = str(Path(model).resolve()) if Path(model).exists() else str(model)  # found from other folders too
    return Identity(place, getattr(config, "_commit_hash", None), weights, truncate_dim or config.hidden_size)


def weight_files(model: str, revision: str | None) -> list[str]:
    """The files that transformers reads the weights from."""
    for name in WEIGHTS:
        if file := cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False):
            return get_checkpoint_shard_files(model, file, revision=revision)[0] if ".index." in name else [file]
    raise OSError(f"it has no {WEIGHTS[0]}.")


class SearchIndex:
    """Texts with their embeddings and metadata in a folder or on a Milvus server.

    Args:
        address: a folder, or `http(s)://HOST:PORT/COLLECTION?shards=S&replicas=R` of a Milvus server. Without them, the
            port is 19530, the collection `passages`, and shards and replicas are 1.
        model: a model folder or Hub id. For an index that exists, the one that made it; None takes the stored name.
            A new index without a model takes records that bring their embedding.
        revision: branch, tag or commit of a Hub model.
        token: for the server, `user:password` or an API key.
        truncate_dim: keep the embeddings' first D dimensions (Kusupati et al. 2022); fixed when the index is made.

    Raises:
        InputError: if the index was made by another model or with another width.
        UnreadableError: if the model or the index cannot be read; a ConnectionError too, if the server does not answer.

    A record is a text, or a mapping with a `text`. It may have an `id` (a string or an integer), an `embedding` (it is
    scaled to length 1), and metadata: other names with a string, number, boolean or None. Without an id, its text's
    hash is one, so that equal texts are one record. A metadata field keeps the type of its first value.

    Records are written in their order, in batches of `BATCH`. One that was acknowledged stays, whatever happens to the
    next. TypeError or InputError is raised at the first record that does not fit, UnreadableError if the store fails.
    """

    def __init__(
        self,
        address: str | Path,
        model: str | Path | None = None,
        revision: str | None = None,
        token: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        if model is None and (revision is not None or truncate_dim is not None):
            raise InputError("revision and truncate_dim belong to a model: pass model too.")
        self.address = str(address)
        on_server = self.address.startswith(("http://", "https://"))
        if not on_server and "://" in self.address:
            raise InputError(f"An index is a folder or http(s)://HOST:PORT of a Milvus server, not {address}.")
        if not on_server and token is not None:
            raise InputError(f"A token is for a server, and {address} is a folder. Leave the token out.")
        self.store = MilvusStore(self.address, token) if on_server else FolderStore(self.address)
        self.identity = None if model is None else model_identity(model, revision, truncate_dim)
        self._read_identity(any_width=truncate_dim is None)

    def _read_identity(self, any_width: bool = False) -> None:
        """Take what is stored for the identity. Raises: InputError: if it was another; UnreadableError: if it is damaged."""
        try:
            if (stored := self.store.description()) is None:
                return
            given, self.identity = self.identity, Identity(**stored)
            if not all(map(isinstance, self.identity, (*[str | None] * 3, int))):
                raise TypeError(stored)
        except (TypeError, ValueError) as error:  # other keys or types, or no JSON
            problem = f"The description of the index {self.address} is damaged."
            raise UnreadableError(f"{problem} Restore a copy, or remove the index and build it again.") from error
        if given and any_width:
            given = given._replace(dimension=self.identity.dimension)
        if given and given.weights != self.identity.weights:
            made = f"The index {self.address} was made by {self.identity}, not by {given}."
            raise InputError(f"{made} Two models' embeddings differ: open it with its own, or make another index.")
        width = self.identity.dimension
        if given and given.dimension != width:
            remedy = f"pass truncate_dim={width}, or make another index."
            raise InputError(f"The index {self.address} has {width} dimensions, not {given.dimension}: {remedy}")
        self.identity = given or self.identity  # its model may lie elsewhere now

    @cached_property
    def pipeline(self) -> SearchPipeline:
        """The model that made the index."""
        identity = self.identity
        if identity is None or identity.model is None:
            remedy = "Its embeddings were given: pass some, and no rerank." if identity else "Open it with model=..."
            raise InputError(f"{self.address} knows no model that could encode texts. {remedy}")
        self.identity = model_identity(identity.model, identity.revision, identity.dimension)
        self._read_identity()
        return load_search_pipeline(identity.model, identity.revision)

    def __len__(self) -> int:
        return self.store.count()

    def info(self) -> dict[str, Any]:
        """Address, number of records, model, fields, and what the engine tells."""
        identity = self.identity._asdict() if self.identity else {}
        engine = self.store.info() if self.store.description() else {}
        return {"address": self.address, "records": len(self), **identity, "fields": self.store.fields(), **engine}

    def add(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> Added:
        """Store the records whose ids are new. Raises: InputError: also if an id is stored with another text."""
        return self._write(records, replace=False, show_progress_bar=show_progress_bar)

    def upsert(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> int:
        """Store the records in place of those with the same ids, and tell how many."""
        return self._write(records, replace=True, show_progress_bar=show_progress_bar).added

    def delete(self, ids: Iterable[str | int]) -> int:
        """Remove the records with these ids, and tell how many were there."""
        if isinstance(ids, str):
            raise TypeError("ids must be a list of ids, got a string. For one pass [id].")
        names = iter(dict.fromkeys(text_of_id(name, "ids") for name in ids))
        removed = 0
        while batch := list(islice(names, BATCH)):
            if there := list({row["id"] for row in self.store.rows([("id", "in", batch)], [])}):
                self.store.delete(there)
                removed += len(there)
        return removed

    def _write(self, records: Iterable[str | Mapping[str, Any]], replace: bool, show_progress_bar: bool) -> Added:
        if isinstance(records, (str, Mapping)):
            raise TypeError("records must be a list or an iterator of records. For one pass [record].")
        if hasattr(records, "columns") and hasattr(records, "to_dict"):  # a pandas frame would give its columns' names
            records = records.to_dict("records")
        parsed = (parse_record(record, position) for position, record in enumerate(records))
        total = len(records) if isinstance(records, Sized) else None
        self.cut_off = written = present = 0
        with progress_bar(total=total, unit="text", desc="Indexing", disable=not show_progress_bar) as bar:
            while batch := list(islice(parsed, BATCH)):
                new = self._new_records(batch, replace)
                stored = self._write_batch(new, replace, bar) if new else 0
                if stored < len(new):  # another process was faster: its texts must be the same
                    self._new_records(batch, replace)
                written += stored
                present += len(batch) - stored
                bar.update(len(batch) - sum(record.embedding is None for record in new))  # encoding has counted these
        if self.store.description() is not None:
            self.store.optimize()
        if self.cut_off:
            logger.warning("%d texts are longer than the model reads, and were cut off: see --chunk.", self.cut_off)
        return Added(written, present)

    def _new_records(self, batch: Sequence[NewRecord], replace: bool) -> list[NewRecord]:
        """One record for each id of the batch, and only those that are not stored yet; with `replace`, all ids."""
        unique: dict[str, NewRecord] = {}
        for record in batch:
            unique[record.id] = record if replace else unique.get(record.id, record)
        rows = [] if replace else self.store.rows([("id", "in", list(unique))], ["text"])
        stored = {row["id"]: row["text"] for row in rows}
        for record in [] if replace else batch:
            if record.text != stored.get(record.id, unique[record.id].text):
                place = f"is in {self.address}" if record.id in stored else "comes twice,"
                raise InputError(f"The id {record.id!r} {place} with another text. Upsert it, or use other ids.")
        return [record for name, record in unique.items() if name not in stored]

    def _write_batch(self, records: Sequence[NewRecord], replace: bool, bar: tqdm) -> int:
        embeddings = self._embed(records, bar)
        if self.store.description() is None:
            self.identity = self.identity or Identity(None, None, None, embeddings.shape[1])
            self.store.create(self.identity._asdict())
            self._read_identity()  # another process may have been faster, with another model
        known = self.store.fields()
        fields = dict(known)
        rows = []
        for record, embedding in zip(records, embeddings, strict=True):
            rows.append({"id": record.id, "text": record.text, "embedding": embedding})
            for name, value in record.metadata.items():
                kind = fields.setdefault(name, type(value).__name__)
                rows[-1][name] = as_field(value, kind, f"{name} of the record {record.id!r}")
        if new := {name: kind for name, kind in fields.items() if name not in known}:
            self.store.add_fields(new)
        return self.store.write(rows, replace)

    def _embed(self, records: Sequence[NewRecord], bar: tqdm) -> np.ndarray:
        """(records, dimension) fp32, rows of length 1: those given, and the others encoded."""
        width = self.identity.dimension if self.identity else None
        encoded: Iterator[np.ndarray] = iter(())
        if texts := [record.text for record in records if record.embedding is None]:
            model, tokenizer = with_kernels(self.pipeline.model), self.pipeline.tokenizer
            texts = pipeline_tinybert.with_prompt(model.config, "document", texts)
            limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
            if long := pipeline_tinybert.cut_texts((text for text in texts if len(text) > limit), limit):
                tokens = tokenizer(long, truncation=True, max_length=limit + 1)["input_ids"]
                self.cut_off += sum(len(ids) > limit for ids in tokens)
            batch_tokens = pipeline_tinybert.default_batch_tokens(model)
            vectors = pipeline_tinybert.embed_window(model, tokenizer, texts, batch_tokens, bar)
            encoded = iter(vectors[:, :width].cpu().numpy())
        rows = [next(encoded) if record.embedding is None else record.embedding for record in records]
        names = [f"the record {record.id!r}" for record in records]
        width = width or len(rows[0])
        for name, row in zip(names, rows, strict=True):
            if len(row) != width:
                raise InputError(f"The embedding of {name} has {len(row)} dimensions; {self.address} has {width}.")
        return unit_rows(np.stack(rows), names)

    def search(
        self,
        queries: str | Sequence[str] | None,
        top_k: int = 3,
        filter: Mapping[str, Any] | None = None,
        mode: Mode = "dense",
        embeddings: np.ndarray | None = None,
        rerank: int | None = None,
        highlight: bool = False,
        where: str | None = None,
    ) -> list[Any]:
        """The `top_k` best records for each query.

        Args:
            queries: N texts, or one; None where `embeddings` stand for them.
            top_k: results of a query, if the index has as many.
            filter: what the metadata must be: a value, one of several `{"section": ["vcs", "devel"]}`, or in a range
                `{"year": {">=": 2020, "<": 2025}}`; all entries must hold.
            mode: `dense` ranks by cosine, `bm25` by the words in common, `hybrid` by both (`fuse_scores`).
            embeddings: of the queries, (N, H), in place of encoding them.
            rerank: rank so many of the best anew by their tokens (0: none), for None as the model's configuration says.
            highlight: give each hit `highlight`, the (start, end) of the sentence in its text that answers.
            where: in place of `filter`, an expression of the engine: SQL for a folder, `"section = 'vcs' OR year >= 2020"`.

        Returns: for one query a list of hits, best first, each with the record's metadata; for a list of queries, or
        without any, a list of such lists. Scores are cosines, BM25's, or, if fused or ranked anew, sums of 0 to 1.

        Raises: InputError: if an argument does not fit, or the index is empty or has no BM25; TypeError: of a query.
        """
        if mode not in get_args(Mode):
            raise InputError(f"mode must be dense, bm25 or hybrid, got {mode!r}.")
        if queries is None and (embeddings is None or mode != "dense" or rerank or highlight):
            raise InputError("queries may be None only with embeddings, in mode dense, without rerank and highlight.")
        try:
            pipeline_tinybert.check_top_k(top_k, rerank or 0)
            texts = [] if queries is None else pipeline_tinybert.check_queries(queries, "queries")
        except ValueError as error:
            raise InputError(str(error)) from error
        if queries is not None and embeddings is not None and len(embeddings) != len(texts):
            raise InputError(f"There are {len(embeddings)} embeddings for {len(texts)} queries.")
        if self.store.description() is None:
            raise InputError(f"The index {self.address} is empty. Add records first.")
        if where is not None and (filter is not None or not where.strip()):
            raise InputError(f"where is an expression in place of a filter, got where={where!r} and filter={filter!r}.")
        conditions = where or parse_filter({} if filter is None else filter, self.store.fields())
        if rerank is None:  # what needs no model does not load one
            rerank = 0 if mode == "bm25" or embeddings is not None else self.pipeline.model.config.rerank_depth
        depth = max(top_k, rerank)
        wide = max(depth, FUSED) if mode == "hybrid" else depth
        bm25 = [] if mode == "dense" else self.store.bm25(texts, wide, conditions)
        dense = [] if mode == "bm25" else self.store.dense(self._query_vectors(texts, embeddings), wide, conditions)
        found = bm25 or dense
        if mode == "hybrid":
            found = []
            for sides in zip(bm25, dense, strict=True):
                hits = {hit["id"]: hit for side in sides for hit in side}
                by_side = ({hit["id"]: hit["score"] for hit in side} for side in sides)
                scores = pipeline_tinybert.fuse_scores(BM25_WEIGHT, *by_side)
                found.append([hits[name] | {"score": score} for name, score in scores.items()][:depth])
        if rerank or highlight:
            found = self.pipeline.refine(texts, found, top_k, rerank, highlight)
        return found[0] if isinstance(queries, str) else found

    def _query_vectors(self, texts: list[str], embeddings: np.ndarray | None) -> np.ndarray:
        assert self.identity is not None  # the index is not empty
        width = self.identity.dimension
        if embeddings is None:
            return self.pipeline.encode_query(texts, truncate_dim=width).numpy()
        rows = np.asarray(embeddings, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise InputError(f"embeddings must be (queries, {width}) for {self.address}, got {rows.shape}.")
        return unit_rows(rows, [f"query {position}" for position in range(len(rows))])
