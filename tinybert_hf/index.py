"""Corpora: an index that stays, grows and is searched by meaning, by words (BM25) and by both.

from tinybert_hf.index import SearchIndex

index = SearchIndex("packages.index", model="outputs/published")  # or "http://host:19530" of a Milvus server
index.add({"id": "git", "text": "fast version control", "section": "vcs"} for ...)
index.search("undo a commit", top_k=3, filter={"section": ["vcs", "devel"]})

From a terminal; `build` and `add` that were interrupted go on when they are run again:

    python -m tinybert_hf.index build --index packages.index --model outputs/published --data passages.jsonl --id_column id
    python -m tinybert_hf.index search --index packages.index --query "undo a commit"
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset, load_dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, HfArgumentParser
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.logging import disable_progress_bar

from .arguments import HelpFormatter, errors_as_messages
from .data import load_data, without_progress_bars
from .index_folder import FolderHome
from .index_milvus import MilvusHome
from .index_records import (
    Draft,
    Hits,
    Home,
    Record,
    as_field,
    parse_filter,
    parse_record,
    text_of_id,
    unit_rows,
)
from .pipeline_tinybert import SemanticSearchPipeline, check_texts, default_batch_tokens, embed_window
from .search import FUSED, fuse_scores, load_search_pipeline

# Records that are encoded and acknowledged together: what a killed build loses at most. The small encoder needs seconds
# for them on a CPU, the full one minutes.
BATCH = 2_048


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
    """Name, commit (of the Hub), SHA-256 of the weights, and the embeddings' width.

    Raises:
        OSError: if there is no such model.
        ValueError: if `truncate_dim` does not fit it.
    """
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        file = cached_file(str(model), SAFE_WEIGHTS_NAME, revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(f"Could not load the model {model}: {error}") from error
    assert file is not None  # else it raises
    if truncate_dim is not None and not 1 <= truncate_dim <= config.hidden_size:
        raise ValueError(
            f"truncate_dim must be from 1 to {config.hidden_size}, the width of {model}'s embeddings, got {truncate_dim}."
        )
    digest = hashlib.sha256()
    with open(file, "rb") as weights:
        while block := weights.read(2**20):
            digest.update(block)
    return Identity(
        str(model),
        getattr(config, "_commit_hash", None),
        digest.hexdigest(),
        truncate_dim or config.hidden_size,
    )


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


class SearchIndex:
    """Texts with their embeddings and metadata in a folder or on a Milvus server.

    Args:
        address: a folder, or `http(s)://HOST:PORT/COLLECTION?shards=S&replicas=R` of a Milvus server; the port is 19530,
            the collection `passages`, shards and replicas 1 if left out.
        model: a model folder or Hub id; for an index that exists, the one that made it, and None takes the stored name.
            A new index without a model takes records that bring their embedding.
        revision: of a Hub model.
        token: for the server, `user:password` or an API key.
        truncate_dim: keep the embeddings' first D dimensions (Kusupati et al. 2022); fixed when the index is made.

    Raises:
        ValueError: if the index was made by another model or with another width.
        OSError: if the model cannot be read, or the index is damaged; ConnectionError: if the server does not answer.
        ModuleNotFoundError: without `pip install 'tinybert_hf[index]'`.

    A record is a text, or a mapping with `text`, and if you like `id` (a string or an integer), `embedding` (of the
    index's width; scaled to length 1), and metadata: any other names with a string, number, boolean or None. Without an
    id, the text's hash is its id, so that equal texts are one record. A field keeps the type of its first value.

    Methods that take records write them in acknowledged batches of `BATCH`, in their order: whatever happens, earlier
    batches stay. They raise TypeError or ValueError at the first record that does not fit, and OSError (a server:
    ConnectionError) where the home fails.
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
            raise ValueError("revision and truncate_dim are of a model: pass model too.")
        self.address = str(address)
        self.home = open_home(self.address, token)
        given = None if model is None else model_identity(model, revision, truncate_dim)
        stored = self.home.description()
        self.identity = given if stored is None else Identity(**stored)
        if stored is not None and given is not None:
            self._check_model(given)

    def _check_model(self, given: Identity) -> None:
        assert self.identity is not None
        if given.weights != self.identity.weights:
            raise ValueError(
                f"The index {self.address} was made by {_name(self.identity)}, not by {_name(given)}. Embeddings of two "
                "models cannot be compared: open it with that model, or make another index."
            )
        if given.dimension != self.identity.dimension:
            raise ValueError(
                f"The index {self.address} has {self.identity.dimension} dimensions, not {given.dimension}: pass "
                f"truncate_dim={self.identity.dimension}, or make another index."
            )

    @cached_property
    def pipeline(self) -> SemanticSearchPipeline:
        """The model that made the index."""
        identity = self.identity
        if identity is None or identity.model is None:
            raise ValueError(
                f"{self.address} knows no model that could encode texts. "
                + (
                    "Open it with model=..."
                    if identity is None
                    else "Its embeddings were given: pass embeddings too."
                )
            )
        self._check_model(model_identity(identity.model, identity.revision, identity.dimension))
        return load_search_pipeline(identity.model, identity.revision)

    def __len__(self) -> int:
        """Records that are stored."""
        return self.home.count()

    def info(self) -> dict[str, Any]:
        """Address, number of records, model, fields, and what the engine tells."""
        identity = self.identity._asdict() if self.identity else {}
        stored = self.home.info() if self.home.description() else {}
        return {
            "address": self.address,
            "records": len(self),
            **identity,
            "fields": self.home.fields(),
            **stored,
        }

    # ---- Writing ----

    def add(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> Added:
        """Store the records whose ids are new. Run again after an interruption, it goes on where it was stopped.

        Raises, besides what the class says: ValueError: if an id is stored with another text (`upsert` replaces it).
        """
        added, present = self._write(records, replace=False, show_progress_bar=show_progress_bar)
        return Added(added, present)

    def upsert(self, records: Iterable[str | Mapping[str, Any]], show_progress_bar: bool = False) -> int:
        """Store the records in place of those with the same ids; the number of records written."""
        return self._write(records, replace=True, show_progress_bar=show_progress_bar)[0]

    def delete(self, ids: Iterable[str | int]) -> int:
        """Remove the records with these ids; the number of those that were there."""
        if isinstance(ids, str):
            raise TypeError("ids must be a list of ids, got a string. For one pass [id].")
        names = list(dict.fromkeys(text_of_id(name, "ids") for name in ids))
        removed = 0
        for start in range(0, len(names), BATCH):
            there = list(self.home.texts(names[start : start + BATCH]))
            if there:
                self.home.delete(there)
                removed += len(there)
        return removed

    def _write(
        self, records: Iterable[str | Mapping[str, Any]], replace: bool, show_progress_bar: bool
    ) -> tuple[int, int]:
        if isinstance(records, (str, Mapping)):
            raise TypeError("records must be a list or an iterator of records. For one pass [record].")
        drafts = (parse_record(record, position) for position, record in enumerate(records))
        total = len(records) if isinstance(records, Sized) else None
        written = present = 0
        with tqdm(total=total, unit="text", desc="Indexing", disable=not show_progress_bar) as bar:
            while batch := list(islice(drafts, BATCH)):
                unique: dict[str, Draft] = {}
                for draft in batch:
                    earlier = unique.get(draft.id)
                    if earlier and earlier.text != draft.text and not replace:
                        raise ValueError(_conflict(draft.id, "comes twice, with different texts"))
                    unique[draft.id] = draft if replace or not earlier else earlier
                stored = {} if replace else self.home.texts(list(unique))
                for name, text in stored.items():
                    if unique[name].text != text:
                        raise ValueError(_conflict(name, f"is in {self.address} with another text"))
                new = [draft for name, draft in unique.items() if name not in stored]
                if new:
                    self._write_batch(new, replace, bar)
                written += len(new)
                present += len(batch) - len(new)
                bar.update(
                    len(batch) - sum(draft.embedding is None for draft in new)
                )  # encoding counts the others
        if self.home.description() is not None:
            self.home.settle()
        return written, present

    def _write_batch(self, drafts: Sequence[Draft], replace: bool, bar: tqdm) -> None:
        embeddings = self._embed(drafts, bar)
        if self.home.description() is None:
            self.identity = self.identity or Identity(None, None, None, embeddings.shape[1])
            self.home.create(self.identity._asdict())
        known = self.home.fields()
        fields = dict(known)
        for draft in drafts:
            for name, value in draft.metadata.items():
                kind = fields.setdefault(name, type(value).__name__)
                draft.metadata[name] = as_field(value, kind, f"{name} of the record {draft.id!r}")
        if len(fields) > len(known):
            self.home.add_fields({name: kind for name, kind in fields.items() if name not in known})
        self.home.write(
            [
                Record(draft.id, draft.text, embedding, draft.metadata)
                for draft, embedding in zip(drafts, embeddings, strict=True)
            ],
            replace,
        )

    def _embed(self, drafts: Sequence[Draft], bar: tqdm) -> np.ndarray:
        """(drafts, dimension) fp32, rows of length 1: those given, and the others encoded."""
        texts = [draft.text for draft in drafts if draft.embedding is None]
        encoded = iter(self._encode(texts, bar) if texts else ())
        rows = [next(encoded) if draft.embedding is None else draft.embedding for draft in drafts]
        width = self.identity.dimension if self.identity else len(rows[0])
        for draft, row in zip(drafts, rows, strict=True):
            if len(row) != width:
                raise ValueError(
                    f"The embedding of the record {draft.id!r} has {len(row)} dimensions; {self.address} has {width}."
                )
        return unit_rows(np.stack(rows), [f"the record {draft.id!r}" for draft in drafts])

    def _encode(self, texts: list[str], bar: tqdm) -> np.ndarray:
        """(texts, dimension) fp32, not scaled to length 1 yet; the bar counts the texts as they are done."""
        model, tokenizer = self.pipeline.model, self.pipeline.tokenizer
        assert self.identity is not None  # the pipeline has checked it
        rows = embed_window(model, tokenizer, texts, default_batch_tokens(model), bar)
        return rows[:, : self.identity.dimension].cpu().numpy()

    # ---- Searching ----

    def search(
        self,
        queries: str | Sequence[str] | None,
        top_k: int = 3,
        filter: Mapping[str, Any] | None = None,
        mode: Literal["dense", "bm25", "hybrid"] = "dense",
        embeddings: np.ndarray | None = None,
    ) -> list:
        """The `top_k` best records for each query.

        Args:
            queries: N texts, or one; None where `embeddings` stand for them.
            top_k: results of a query, if the index has as many.
            filter: what the metadata must be: `{"section": "vcs"}`, one of several `{"section": ["vcs", "devel"]}`, or in
                a range `{"year": {">=": 2020, "<": 2025}}`; all entries must hold.
            mode: `dense` ranks by cosine, `bm25` by the words in common, `hybrid` adds up the scores of
                both (`search.fuse_scores`).
            embeddings: of the queries, (N, H), in place of encoding them.

        Returns: for one query a list of `{"id", "score", "text"}` and the record's metadata, best first; for a list of
        queries, or without any, a list of such lists. Scores are cosines, BM25's, or sums of both scaled to 0 .. 1.

        Raises:
            TypeError: if a query is not a string.
            ValueError: if a query is empty, a number or a filter does not fit, or the index is empty or has no BM25.
        """
        texts = self._check_queries(queries, top_k, mode, embeddings)
        if self.home.description() is None:
            raise ValueError(f"The index {self.address} is empty. Add records first.")
        conditions = parse_filter(filter or {}, self.home.fields())
        if mode == "bm25":
            found = self.home.bm25(texts, top_k, conditions)
        elif mode == "dense":
            found = self.home.dense(self._query_vectors(texts, embeddings), top_k, conditions)
        else:
            depth = max(top_k, FUSED)
            by_words = self.home.bm25(texts, depth, conditions)
            by_meaning = self.home.dense(self._query_vectors(texts, embeddings), depth, conditions)
            found = [fuse_hits(*sides)[:top_k] for sides in zip(by_words, by_meaning, strict=True)]
        return found[0] if isinstance(queries, str) else found

    def _check_queries(self, queries: Any, top_k: int, mode: str, embeddings: np.ndarray | None) -> list[str]:
        if mode not in ("dense", "bm25", "hybrid"):
            raise ValueError(f"mode must be dense, bm25 or hybrid, got {mode!r}.")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k must be a positive integer, got {top_k!r}.")
        if queries is None:
            if embeddings is None or mode != "dense":
                raise ValueError("queries may be None only with embeddings, in mode dense.")
            return []
        texts = [queries] if isinstance(queries, str) else queries
        check_texts(texts, "queries")
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"queries is empty: {queries!r}. Pass a question or a few words to search for.")
        if embeddings is not None and len(embeddings) != len(texts):
            raise ValueError(f"There are {len(embeddings)} embeddings for {len(texts)} queries.")
        return list(texts)

    def _query_vectors(self, texts: list[str], embeddings: np.ndarray | None) -> np.ndarray:
        assert self.identity is not None  # the index is not empty
        if embeddings is None:
            return self.pipeline.encode(texts, truncate_dim=self.identity.dimension).numpy()
        rows = np.asarray(embeddings, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.identity.dimension:
            raise ValueError(
                f"embeddings must be (queries, {self.identity.dimension}) for {self.address}, got {rows.shape}."
            )
        return unit_rows(rows, [f"query {position}" for position in range(len(rows))])


def fuse_hits(by_words: Hits, by_meaning: Hits) -> Hits:
    """One query's results of both kinds as one ranking, best first."""
    hits = {hit["id"]: hit for hit in [*by_words, *by_meaning]}
    sides = ({hit["id"]: hit["score"] for hit in side} for side in (by_words, by_meaning))
    return [hits[name] | {"score": score} for name, score in fuse_scores(*sides).items()]


def _name(identity: Identity) -> str:
    if identity.model is None:
        return "embeddings that were given"
    commit = f" at {identity.revision}" if identity.revision else ""
    return f"{identity.model}{commit} (weights {(identity.weights or '')[:12]})"


def _conflict(name: str, problem: str) -> str:
    return f"The id {name!r} {problem}. Use upsert to replace texts, or other ids."


# ---- Command line ----


@dataclass
class AddressArguments:
    """Where the index is."""

    index: str = field(metadata={"help": "A folder, or http://HOST:PORT/COLLECTION of a Milvus server."})
    token: str | None = field(default=None, metadata={"help": "For the server: user:password or an API key."})


@dataclass
class InputArguments(AddressArguments):
    """What to put into the index."""

    data: str = field(
        default="",
        metadata={
            "help": "A csv, tsv, json, jsonl or parquet file (also compressed), a txt file with one text a line, a "
            "folder of such files, or the id of a data set of the Hub."
        },
    )
    data_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    data_split: str = field(default="train", metadata={"help": "Split of a Hub data set or a folder."})
    text_column: str = field(
        default="text", metadata={"help": "Column with the texts; blank ones are left out."}
    )
    id_column: str | None = field(
        default=None,
        metadata={"help": "Column with the ids; default: the text's hash, so that equal texts are one."},
    )
    metadata_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns to store for filters and results."}
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data is missing: what shall be put into the index?")


@dataclass
class BuildArguments(InputArguments):
    """Make an index; go on with one that was interrupted."""

    model: str = field(default="", metadata={"help": "A model folder or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub model."})
    truncate_dim: int | None = field(
        default=None, metadata={"help": "Keep so many dimensions of the embeddings; default: all."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ValueError("--model is missing: which one shall make the embeddings?")


@dataclass
class AddArguments(InputArguments):
    """Add to an index that is there."""

    upsert: bool = field(default=False, metadata={"help": "Replace what is stored under the same ids."})


@dataclass
class QueryArguments(AddressArguments):
    """What to look for."""

    query: str = field(default="", metadata={"help": "The question, or a few words."})
    top_k: int = field(default=3, metadata={"help": "How many texts to print."})
    mode: Literal["dense", "bm25", "hybrid"] = field(
        default="dense", metadata={"help": "By meaning, by words, or both fused."}
    )
    filter: str | None = field(
        default=None, metadata={"help": 'JSON, such as {"section": ["vcs"], "year": {">=": 2020}}.'}
    )
    json: bool = field(default=False, metadata={"help": "Print a JSON list of {id, score, text, ...}."})


@without_progress_bars()
def read_rows(arguments: InputArguments) -> Dataset:
    """The records of `--data`, without those with a blank text.

    Raises: ValueError: if the data cannot be read or a column is missing.
    """
    if arguments.data.endswith(".txt") and Path(arguments.data).is_file():
        rows = load_dataset("text", data_files=arguments.data, split="train")
    else:
        rows = load_data(arguments.data, arguments.data_config, arguments.data_split)
    columns = {"text": arguments.text_column} | ({"id": arguments.id_column} if arguments.id_column else {})
    columns |= {name: name for name in arguments.metadata_columns}
    if missing := set(columns.values()) - set(rows.column_names):
        raise ValueError(
            f"{arguments.data} has no column {min(missing)!r}; it has {', '.join(rows.column_names)}. See --text_column, "
            "--id_column and --metadata_columns."
        )
    rows = rows.select_columns(list(dict.fromkeys(columns.values())))
    kept = rows.filter(
        lambda texts: [text is not None and bool(str(text).strip()) for text in texts],
        input_columns=arguments.text_column,
        batched=True,
    )
    if blank := len(rows) - len(kept):
        print(f"{blank:,} rows without text were left out.", file=sys.stderr)
    return kept.with_transform(lambda batch: {name: batch[column] for name, column in columns.items()})


def build(arguments: BuildArguments) -> None:
    _fill(
        SearchIndex(
            arguments.index, arguments.model, arguments.revision, arguments.token, arguments.truncate_dim
        ),
        arguments,
        upsert=False,
    )


def add(arguments: AddArguments) -> None:
    index = SearchIndex(arguments.index, token=arguments.token)
    if index.identity is None:
        raise ValueError(f"There is no index at {arguments.index}. Make it with: build --model ...")
    _fill(index, arguments, arguments.upsert)


def _fill(index: SearchIndex, arguments: InputArguments, upsert: bool) -> None:
    if upsert:
        done = f"{index.upsert(read_rows(arguments), show_progress_bar=True):,} written"
    else:
        added = index.add(read_rows(arguments), show_progress_bar=True)
        done = f"{added.added:,} added, {added.present:,} already there"
    print(f"{arguments.index}: {done}; {len(index):,} records.")


def search(arguments: QueryArguments) -> None:
    try:
        conditions = json.loads(arguments.filter) if arguments.filter else None
    except json.JSONDecodeError as error:
        raise ValueError(f"--filter is no JSON: {arguments.filter} ({error})") from error
    results: Hits = SearchIndex(arguments.index, token=arguments.token).search(
        arguments.query, arguments.top_k, conditions, arguments.mode
    )
    if arguments.json:
        print(json.dumps(results, ensure_ascii=False))
        return
    for rank, result in enumerate(results, start=1):
        print(f"{rank:3d}. {result['score']:.3f}  {result['id']}: {result['text']}")


def info(arguments: AddressArguments) -> None:
    for name, value in SearchIndex(arguments.index, token=arguments.token).info().items():
        print(f"{name:14} {value}")


COMMANDS: dict[str, tuple[Any, Any]] = {
    "build": (BuildArguments, build),
    "add": (AddArguments, add),
    "search": (QueryArguments, search),
    "info": (AddressArguments, info),
}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        print(f"usage: python -m tinybert_hf.index {{{','.join(COMMANDS)}}} --index INDEX ...\n\n{__doc__}")
        sys.exit(0 if command in ("-h", "--help") else 2)
    arguments_class, run = COMMANDS[command]
    parser = HfArgumentParser(
        arguments_class,
        prog=f"python -m tinybert_hf.index {command}",
        description=arguments_class.__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    disable_progress_bar()  # of loading the model
    with errors_as_messages():
        try:
            (arguments,) = parser.parse_args_into_dataclasses(sys.argv[2:])
        except ValueError as error:
            parser.error(str(error))
        run(arguments)


if __name__ == "__main__":
    main()
