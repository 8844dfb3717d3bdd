"""Pairs to train on from documents alone, for those who have no queries.

A span of a text is a query whose answer is the rest of the text (Inverse Cloze Task, Lee et al. 2019,
arXiv:1906.00300), with a new span each time the text is read (Izacard et al. 2022, arXiv:2112.09118). Where the span
is cut decides: what a document is about it says first, so spans come from its title, from the heading of its section,
or else from its first sentence.
"""

import logging
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .data import select_columns, text_id, without_progress_bars
from .errors import InputError
from .passages import find_headings
from .pipeline_tinybert import SENTENCE, cut_texts
from .tokenization import map_tokens

logger = logging.getLogger(__name__)

SPAN_TOKENS = (6, 16)  # of a query, the shortest and the longest
KEPT = 0.2  # how often the answer keeps the words of the query, so that finding them again is learned too
MIN_TOKENS = 8  # a shorter document has no two halves


def split_sections(text: str) -> Iterator[tuple[str, str]]:
    """The sections of a Markdown text as (heading, body); what stands before the first heading has an empty one.

    >>> list(split_sections("Intro.\\n# Install\\nRun pip.\\n## From source\\nRun make."))
    [('', 'Intro.'), ('Install', 'Run pip.'), ('From source', 'Run make.')]
    """
    lines = re.split(r"\r\n?|\n", text)  # as Markdown counts them
    for (_, start, path), (end, *_) in pairwise([(0, 0, [""]), *find_headings(text), (len(lines), 0, [""])]):
        if body := "\n".join(lines[start:end]).strip():
            yield path[-1], body


@without_progress_bars()
def read_documents(dataset: Dataset, columns: dict[str, str], source: str, flags: dict[str, str]) -> Dataset:
    """Documents as `head`, which says what each is about, and `body`, all that follows.

    The head is the title, the heading, or both; without either, the first sentence. Each section of a Markdown text is
    a document of its own. The arguments and errors are those of `select_columns`, for `text`, and perhaps `title`.
    """
    rows = select_columns(dataset, columns, source, flags)

    def split(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        titles = batch.get("title", [""] * len(batch["text"]))
        parts = []
        for title, text in zip(titles, batch["text"], strict=True):
            for heading, body in split_sections(text):
                head = ": ".join(filter(None, (title.strip(), heading)))
                end = 0 if head else SENTENCE.match(body).end()
                parts.append((head or body[:end].strip(), body[end:].strip()))
        return {"head": [head for head, _ in parts], "body": [body for _, body in parts]}

    return rows.map(split, batched=True, remove_columns=rows.column_names)


@without_progress_bars()
def pairs_from_documents(documents: Dataset) -> Dataset:
    """Fixed pairs, to measure on: `query` is the head, `answer` the body; documents of one sentence are left out.

    Raises: InputError: if no document has a body.
    """
    pairs = documents.filter(lambda batch: [bool(body) for body in batch["body"]], batched=True)
    if not len(pairs):
        raise InputError(f"None of {len(documents)} documents has a second sentence; pass longer ones.")
    logger.info("%d of %d documents have a second sentence to measure on.", len(pairs), len(documents))
    return pairs.rename_columns({"head": "query", "body": "answer"})


def tokenize_documents(documents: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Each document's token ids: `text`, head and body in one; `head`, the number of its tokens; and `text_id`.

    Documents of fewer than MIN_TOKENS tokens are left out. `datasets` keeps the result on disk beside the data.

    Raises: InputError: if the tokenizer puts other than one special token at either end, or no document is long enough.
    """
    if tokenizer.num_special_tokens_to_add() != 2:
        raise InputError("--documents needs a tokenizer that puts one special token at either end of a text.")

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list]:
        bodies = cut_texts(batch["body"], max_length)
        texts = [f"{head}\n{body}" for head, body in zip(batch["head"], bodies, strict=True)]
        tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        heads = tokenizer(cut_texts(batch["head"], max_length), truncation=True, max_length=max_length)["input_ids"]
        rows = zip(tokens, (len(ids) - 2 for ids in heads), map(text_id, texts), strict=True)
        kept = [row for row in rows if len(row[0]) - 2 >= MIN_TOKENS]
        return {name: [row[i] for row in kept] for i, name in enumerate(("text", "head", "text_id"))}

    rows = map_tokens(documents, tokenize, tokenizer, f"{max_length} documents")
    if not len(rows):
        raise InputError(f"None of {len(documents)} documents has {MIN_TOKENS} tokens; pass longer ones.")
    if short := len(documents) - len(rows):
        logger.info("Left out %d of %d documents with fewer than %d tokens.", short, len(documents), MIN_TOKENS)
    return rows


def draw_pair(row: dict[str, Any], seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """Token ids of a query, a span cut out of the document's title or first sentence, and its answer, the document without it.

    A function of its arguments alone, so that a resumed run, or one with another number of processes, draws the same.
    """
    # A tuple of numbers is no seed for `random`, its text is.
    generator = random.Random(f"{seed} {epoch} {row['text_id']}")
    (first, *tokens, last), head = row["text"], row["head"]
    length = min(generator.randint(*SPAN_TOKENS), head, len(tokens) // 2)  # the answer keeps half of a short document
    start = generator.randint(0, head - length)
    rest = tokens if generator.random() < KEPT else tokens[:start] + tokens[start + length :]
    return [first, *tokens[start : start + length], last], [first, *rest, last]
