"""tinybert index: corpora that stay, grow and are searched."""

import json as json_
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from ..data_arguments import DATA, DataArguments
from ..errors import InputError
from .terminal import AnyText, hide_loading, log_progress, print_hits

if TYPE_CHECKING:
    from ..index import SearchIndex

app = App(
    name="index",
    help="""Make an index of many texts or documents, and search it by meaning, by words (BM25) or by both.

    tinybert index build --index packages.index --model outputs/published --data passages.jsonl --id_column id
    tinybert index search --index packages.index --query "undo a commit"

If a build is interrupted, run it again: it continues.""",
    sort_key=6,
)


@Parameter(name="*")
@dataclass(kw_only=True)
class Address:
    """Where the index is."""

    index: str = field(kw_only=False)
    """A folder, or http://HOST:PORT/COLLECTION of a Milvus server."""
    token: str | None = None
    """For the server: user:password or an API key."""

    def open(self, model: str | None = None, revision: str | None = None, dim: int | None = None) -> "SearchIndex":
        hide_loading()
        from ..index import SearchIndex

        index = SearchIndex(self.index, model, revision, self.token, dim)
        if index.identity is None:
            raise InputError(f"There is no index at {self.index}. Make one: tinybert index build (or sync) --model ...")
        return index


@Parameter(name="*")
@dataclass(kw_only=True)
class Records(DataArguments):
    """What to put into the index."""

    data: Annotated[str, DATA]
    """A csv, tsv, json, jsonl, parquet or xlsx file, a txt file with one text a line, a folder of such files, or the id of
    a data set of the Hub."""
    text_column: str = "text"
    """Column of the texts. Blank texts are left out."""
    id_column: str | None = None
    """Column of the ids. By default the id is a hash of the text, so that equal texts are one record."""
    metadata_columns: list[str] | None = None
    """More columns to store, for filters and results."""
    chunk: bool = False
    """Cut a text that is longer than the model reads into several records: ID#1, ID#2, ..."""

    def read(self, index: "SearchIndex") -> Any:
        from ..index.records import cut_records, read_records

        columns = self.text_column, self.id_column, self.metadata_columns or ()
        rows = read_records(self.data, *columns, split=self.data_split, **self.reading)
        return cut_records(rows, index.pipeline) if self.chunk else rows


@app.command(sort_key=1)
def build(
    *, address: Address, records: Records, model: str, revision: str | None = None, truncate_dim: int | None = None
) -> None:
    """Make an index, or continue an interrupted build.

        tinybert index build --index packages.index --model outputs/published --data passages.jsonl --id_column id

    Args:
        model: The model for the embeddings: a folder or Hub id of a model of ours, or of any BERT encoder.
        revision: Branch, tag or commit of a Hub model.
        truncate_dim: Keep this many of the first dimensions of the embeddings. By default all are kept.
    """
    log_progress()
    fill(address.open(model, revision, truncate_dim), records, upsert=False)


@app.command(sort_key=2)
def add(*, address: Address, records: Records, upsert: bool = False) -> None:
    """Add texts to an existing index.

        tinybert index add --index packages.index --data new.jsonl --id_column id --upsert

    Args:
        upsert: Replace records that have the same ids.
    """
    log_progress()
    fill(address.open(), records, upsert)


def fill(index: "SearchIndex", records: Records, upsert: bool) -> None:
    if upsert:
        done = f"{index.upsert(records.read(index), show_progress_bar=True):,} written"
    else:
        added = index.add(records.read(index), show_progress_bar=True)
        done = f"{added.added:,} added, {added.present:,} already there"
    print(f"{index.address}: {done}; {len(index):,} records.")


@app.command(sort_key=3)
def sync(address: Address, documents: list[str], *, model: str | None = None) -> None:
    """Make or update an index of documents: encode what is new or changed, remove what is gone.

        tinybert index sync notes.index notes --model outputs/published

    Args:
        documents: All folders and files to index: Markdown, HTML, text, PDF, DOCX, EPUB, notebooks. Others are removed.
        model: The model for the embeddings: a folder or Hub id. An existing index remembers its model.
    """
    log_progress()
    from ..index.sync import sync as keep_in_step

    for name, number in keep_in_step(address.open(model), documents, show_progress_bar=True).items():
        print(f"{number:9,} {name}")


@app.command(sort_key=4)
def search(
    *,
    address: Address,
    query: AnyText,
    top_k: int = 3,
    mode: Literal["dense", "bm25", "hybrid"] = "dense",
    filter: str | None = None,
    where: str | None = None,
    rerank: int | None = None,
    highlight: bool = False,
    json: bool = False,
) -> None:
    """Print the records that answer a query best.

        tinybert index search --index packages.index --query "undo a commit" --mode hybrid
        tinybert index search --index packages.index --query "undo a commit" --filter '{"section": ["vcs", "devel"]}'

    Args:
        query: The question, or a few words.
        top_k: How many records to print.
        mode: Rank by meaning (dense), by words in common (bm25), or by both (hybrid).
        filter: Conditions on metadata, as JSON: {"section": ["vcs"], "year": {">=": 2020}}.
        where: In place of --filter, an expression of the engine, in SQL for a folder: "section = 'vcs' OR year >= 2020".
        rerank: Rank this many of the best again, token by token; 0 turns this off. By default, as the model says.
        highlight: Show the sentence that answers in bold. JSON has its position instead, as highlight: [start, end].
        json: Print a JSON list of {id, score, text, ...}.
    """
    conditions = parse_conditions(filter)
    print_hits(address.open().search(query, top_k, conditions, mode, None, rerank, highlight, where), json)


def parse_conditions(filter: str | None) -> dict[str, Any] | None:
    try:
        conditions = None if filter is None else json_.loads(filter)
    except (json_.JSONDecodeError, RecursionError) as error:
        raise InputError(f"--filter is no JSON: {filter:.200} ({error})") from error
    if filter is not None and not isinstance(conditions, dict):
        raise InputError(f'--filter must be a JSON object, such as {{"section": ["vcs"]}}, got {filter}.')
    return conditions


@app.command(sort_key=5)
def info(*, address: Address) -> None:
    """Print the number of records, the model, the fields, and facts about the engine.

    tinybert index info --index packages.index
    """
    for name, value in address.open().info().items():
        print(f"{name:14} {value}")
