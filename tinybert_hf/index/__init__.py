"""Corpora: an index that stays, grows and is searched by meaning, by words (BM25) and by both."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from tqdm import tqdm
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from ..convert_bert import load_config, read_prompts
from ..encoding import SearchPipeline, load_search_pipeline, with_kernels
from ..errors import InputError
from ..files import sha256
from ..loading import loading
from ..pipeline_tinybert import (
    check_queries,
    check_top_k,
    check_truncate_dim,
    default_batch_tokens,
    embed_window,
    with_prompt,
)
from ..progress import progress_bar
from ..ranking import FUSED, fuse_scores
from .folder import FolderStore
from .milvus import MilvusStore
from .records import NewRecord, as_field, parse_filter, parse_record, text_of_id, unit_rows

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Records that are encoded and acknowledged together: what a killed build loses at most. The small encoder needs seconds
# for them on a CPU, the full one minutes.
BATCH = 2_048

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


def model_identity(model: str | Path, revision: str | None, truncate_dim: int | None) -> Identity:
    """Name, commit (of the Hub), SHA-256 of the weights (and of the prompts, if there are any), and the embeddings' width."""
    with loading(model):
        config: Any = load_config(str(model), revision)
        files = weight_files(str(model), revision)
        prompts = getattr(config, "prompts", None) or read_prompts(str(model), revision)
    try:
        check_truncate_dim(truncate_dim, config.hidden_size)
    except ValueError as error:
        raise InputError(f"{model}: {error}") from error
    digests = [sha256(file) for file in files]
    if any(prompts.values()):
        digests.append(json.dumps(prompts, sort_keys=True))
    weights = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Identity(str(model), getattr(config, "_commit_hash", None), weights, truncate_dim or config.hidden_size)


def weight_files(model: str, revision: str | None) -> list[str]:
    """The files that transformers reads the weights from."""
    for name in WEIGHTS:
        if file := cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False):
            in_parts = name.endswith(".index.json")
            return get_checkpoint_shard_files(model, file, revision=revision)[0] if in_parts else [file]
    raise OSError(f"it has no {WEIGHTS[0]}.")


def open_store(address: str, token: str | None) -> FolderStore | MilvusStore:
    """The store that an address names."""
    if address.startswith(("http://", "https://")):
        return MilvusStore(address, token)
    if "://" in address:
        raise InputError(f"An index is a folder or http(s)://HOST:PORT of a Milvus server, not {address}.")
    if token is not None:
        raise InputError(f"A token is for a server, and {address} is a folder. Leave the token out.")
    return FolderStore(address)


class SearchIndex:
    """Texts with their embeddings and metadata in a folder or on a Milvus server.

    Args:
        address: a folder, or `http(s)://HOST:PORT/COLLECTION?shards=S&replicas=R` of a Milvus server. Left out, the port
            is 19530, the collection `passages`, and shards and replicas are 1.
        model: a model folder or Hub id. For an index that exists, the one that made it; None takes the stored name.
            A new index without a model takes records that bring their embedding.
        revision: branch, tag or commit of a Hub model.
        token: for the server, `user:password` or an API key.
        truncate_dim: keep the embeddings' first D dimensions (Kusupati et al. 2022); fixed when the index is made.

    Raises:
        InputError: if the index was made by another model or with another width.
        UnreadableError: if the model or the index cannot be read; a ConnectionError too, if the server does not answer.
        MissingExtraError: without `pip install 'tinybert_hf[index]'`; for a server, `'tinybert_hf[milvus]'`.

    A record is a text, or a mapping. The mapping has a `text`. It may have an `id` (a string or an integer), an
    `embedding` (of the index's width; it is scaled to length 1), and metadata: any other names with a string, number,
    boolean or None. Without an id, the text's hash is its id, so that equal texts are one record. A metadata field keeps
    the type of its first value.

    Methods that take records write them in their order, in batches of `BATCH`. A batch that was acknowledged stays,
    whatever happens to the next. They raise TypeError or InputError at the first record that does not fit, and
    UnreadableError where the store fails.
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
        self.store = open_store(self.address, token)
        given = None if model is None else model_identity(model, revision, truncate_dim)
        stored = self.store.description()
        self.identity = given if stored is None else Identity(**stored)
        if stored is not None and given is not None:
            self._check_model(given if truncate_dim else given._replace(dimension=stored["dimension"]))
            self.identity = given._replace(dimension=stored["dimension"])  # the model may lie elsewhere now

    def _check_model(self, given: Identity) -> None:
        assert self.identity is not None
        if given.weights != self.identity.weights:
            raise InputError(
                f"The index {self.address} was made by {_name(self.identity)}, not by {_name(given)}. Embeddings of two "
                "models cannot be compared: open it with that model, or make another index."
            )
        if given.dimension != self.identity.dimension:
            raise InputError(
                f"The index {self.address} has {self.identity.dimension} dimensions, not {given.dimension}: pass "
                f"truncate_dim={self.identity.dimension}, or make another index."
            )

    @cached_property
    def pipeline(self) -> SearchPipeline:
        """The model that made the index."""
        identity = self.identity
        if identity is None or identity.model is None:
            remedy = "Its embeddings were given: pass embeddings too." if identity else "Open it with model=..."
            raise InputError(f"{self.address} knows no model that could encode texts. {remedy}")
        self._check_model(model_identity(identity.model, identity.revision, identity.dimension))
        return load_search_pipeline(identity.model, identity.revision)

    def __len__(self) -> int:
        """Records that are stored."""
        return self.store.count()

    def info(self) -> dict[str, Any]:
        """Address, number of records, model, fields, and what the engine tells."""
        identity = self.identity._asdict() if self.identity else {}
        stored = self.store.info() if self.store.description() else {}
        return {"address": self.address, "records": len(self), **identity, "fields": self.store.fields(), **stored}

    def add(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> Added:
        """Store the records whose ids are new. Run again after an interruption, it goes on where it was stopped.

        Raises, besides what the class says: InputError: if an id is stored with another text (`upsert` replaces it).
        """
        return self._write(records, replace=False, show_progress_bar=show_progress_bar)

    def upsert(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> int:
        """Store the records in place of those with the same ids; the number of records written."""
        return self._write(records, replace=True, show_progress_bar=show_progress_bar).added

    def delete(self, ids: Iterable[str | int]) -> int:
        """Remove the records with these ids; the number of those that were there."""
        if isinstance(ids, str):
            raise TypeError("ids must be a list of ids, got a string. For one pass [id].")
        names = iter(dict.fromkeys(text_of_id(name, "ids") for name in ids))
        removed = 0
        while batch := list(islice(names, BATCH)):
            if there := list(self.store.texts(batch)):
                self.store.delete(there)
                removed += len(there)
        return removed

    def _write(self, records: Iterable[str | Mapping[str, Any]], replace: bool, show_progress_bar: bool) -> Added:
        if isinstance(records, (str, Mapping)):
            raise TypeError("records must be a list or an iterator of records. For one pass [record].")
        parsed = (parse_record(record, position) for position, record in enumerate(records))
        total = len(records) if isinstance(records, Sized) else None
        written = present = 0
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
        return Added(written, present)

    def _new_records(self, batch: Sequence[NewRecord], replace: bool) -> list[NewRecord]:
        """One record for each id of the batch, and only those that are not stored yet; with `replace`, all ids."""
        unique: dict[str, NewRecord] = {}
        for record in batch:
            earlier = unique.get(record.id)
            if earlier and earlier.text != record.text and not replace:
                raise _conflict(record.id, "comes twice, with different texts")
            unique[record.id] = record if replace or not earlier else earlier
        stored = {} if replace else self.store.texts(list(unique))
        for name, text in stored.items():
            if unique[name].text != text:
                raise _conflict(name, f"is in {self.address} with another text")
        return [record for name, record in unique.items() if name not in stored]

    def _write_batch(self, records: Sequence[NewRecord], replace: bool, bar: tqdm) -> int:
        embeddings = self._embed(records, bar)
        if self.store.description() is None:
            self.identity = self.identity or Identity(None, None, None, embeddings.shape[1])
            self.store.create(self.identity._asdict())
            if stored := self.store.description():  # another process may have been faster, with another model
                given, self.identity = self.identity, Identity(**stored)
                self._check_model(given)
        known = self.store.fields()
        fields = dict(known)
        rows = []
        for record, embedding in zip(records, embeddings, strict=True):
            rows.append({"id": record.id, "text": record.text, "embedding": embedding})
            for name, value in record.metadata.items():
                kind = fields.setdefault(name, type(value).__name__)
                rows[-1][name] = as_field(value, kind, f"{name} of the record {record.id!r}")
        if len(fields) > len(known):
            self.store.add_fields({name: kind for name, kind in fields.items() if name not in known})
        return self.store.write(rows, replace)

    def _embed(self, records: Sequence[NewRecord], bar: tqdm) -> np.ndarray:
        """(records, dimension) fp32, rows of length 1: those given, and the others encoded."""
        width = self.identity.dimension if self.identity else None
        encoded: Iterator[np.ndarray] = iter(())
        if texts := [record.text for record in records if record.embedding is None]:
            model, tokenizer = with_kernels(self.pipeline.model), self.pipeline.tokenizer
            texts = with_prompt(model.config, "document", texts)
            vectors = embed_window(model, tokenizer, texts, default_batch_tokens(model), bar)
            encoded = iter(vectors[:, :width].cpu().numpy())
        rows = [next(encoded) if record.embedding is None else record.embedding for record in records]
        width = width or len(rows[0])
        for record, row in zip(records, rows, strict=True):
            if len(row) != width:
                raise InputError(
                    f"The embedding of the record {record.id!r} has {len(row)} dimensions; {self.address} has {width}."
                )
        return unit_rows(np.stack(rows), [f"the record {record.id!r}" for record in records])

    def search(
        self,
        queries: str | Sequence[str] | None,
        top_k: int = 3,
        filter: Mapping[str, Any] | None = None,
        mode: Mode = "dense",
        embeddings: np.ndarray | None = None,
    ) -> list[Any]:
        """The `top_k` best records for each query.

        Args:
            queries: N texts, or one; None where `embeddings` stand for them.
            top_k: results of a query, if the index has as many.
            filter: what the metadata must be: a value, one of several `{"section": ["vcs", "devel"]}`, or in a range
                `{"year": {">=": 2020, "<": 2025}}`; all entries must hold.
            mode: `dense` ranks by cosine, `bm25` by the words in common, `hybrid` by both (`ranking.fuse_scores`).
            embeddings: of the queries, (N, H), in place of encoding them.

        Returns: for one query a list of hits, best first, each with the record's metadata; for a list of queries, or
        without any, a list of such lists. Scores are cosines, BM25's, or sums of both scaled to 0 .. 1.

        Raises:
            TypeError: if a query is not a string.
            InputError: if a query is empty, a number or a filter does not fit, or the index is empty or has no BM25.
        """
        if mode not in get_args(Mode):
            raise InputError(f"mode must be dense, bm25 or hybrid, got {mode!r}.")
        if queries is None and (embeddings is None or mode != "dense"):
            raise InputError("queries may be None only with embeddings, in mode dense.")
        try:
            check_top_k(top_k)
            texts = [] if queries is None else check_queries(queries, "queries")
        except ValueError as error:
            raise InputError(str(error)) from error
        if queries is not None and embeddings is not None and len(embeddings) != len(texts):
            raise InputError(f"There are {len(embeddings)} embeddings for {len(texts)} queries.")
        if self.store.description() is None:
            raise InputError(f"The index {self.address} is empty. Add records first.")
        conditions = parse_filter({} if filter is None else filter, self.store.fields())
        if mode == "bm25":
            found = self.store.bm25(texts, top_k, conditions)
        elif mode == "dense":
            found = self.store.dense(self._query_vectors(texts, embeddings), top_k, conditions)
        else:
            depth = max(top_k, FUSED)
            bm25 = self.store.bm25(texts, depth, conditions)
            dense = self.store.dense(self._query_vectors(texts, embeddings), depth, conditions)
            found = []
            for sides in zip(bm25, dense, strict=True):
                hits = {hit["id"]: hit for side in sides for hit in side}
                scores = fuse_scores(*({hit["id"]: hit["score"] for hit in side} for side in sides))
                found.append([hits[name] | {"score": score} for name, score in scores.items()][:top_k])
        return found[0] if isinstance(queries, str) else found

    def _query_vectors(self, texts: list[str], embeddings: np.ndarray | None) -> np.ndarray:
        assert self.identity is not None  # the index is not empty
        if embeddings is None:
            return self.pipeline.encode_query(texts, truncate_dim=self.identity.dimension).numpy()
        rows = np.asarray(embeddings, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.identity.dimension:
            raise InputError(
                f"embeddings must be (queries, {self.identity.dimension}) for {self.address}, got {rows.shape}."
            )
        return unit_rows(rows, [f"query {position}" for position in range(len(rows))])


def _name(identity: Identity) -> str:
    if identity.model is None:
        return "embeddings that were given"
    commit = f" at {identity.revision}" if identity.revision else ""
    return f"{identity.model}{commit} (weights {(identity.weights or '')[:12]})"


def _conflict(name: str, problem: str) -> InputError:
    return InputError(f"The id {name!r} {problem}. Use upsert to replace texts, or other ids.")
