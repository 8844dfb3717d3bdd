"""Texts to embeddings, and semantic search as a transformers pipeline. This file travels to the Hub.

from transformers import pipeline

search = pipeline("semantic-search", model="OWNER/NAME", trust_remote_code=True)
search("how do I undo a commit?", ["git revert ...", "git push ..."], top_k=1)
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Pipeline, PreTrainedTokenizerBase

LONGEST_WORD = 100  # letters; WordPiece takes a longer word for [UNK]


class Encoder(Protocol):
    """What `encode` needs of a model: a `TinyBertModel`, or something that stands in for one."""

    config: Any
    device: torch.device

    @property
    def training(self) -> bool: ...

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """(B, T) token ids and their mask -> an output whose `pooler_output` is (B, H)."""

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


def check_texts(texts: Any, name: str, first: int = 0) -> list[str]:
    """The strings of a list, an array, a column or a generator. Raise where one is none; counted from `first`."""
    # A mapping and a frame would give their keys.
    if isinstance(texts, str | bytes | Mapping | Set) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {type(texts).__name__}. For one text pass [text].")
    checked = list(texts)
    for position, text in enumerate(checked, start=first):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, got {type(text).__name__}: {text!r}")
        if not text.isascii() and text.encode(errors="ignore").decode() != text:
            raise ValueError(f"{name}[{position}] holds half a character (a lone surrogate): {text!r:.80}. Remove it.")
    return checked


def check_queries(query: Any, name: str = "query") -> list[str]:
    """One query or several as a list. Raise where there is none, one is blank, or one is no string."""
    queries = check_texts([query] if isinstance(query, str) else query, name)
    if not queries or not all(text.strip() for text in queries):
        raise ValueError(f"{name} is empty: {query!r}. Pass a question or a few words to search for.")
    return queries


def check_top_k(top_k: Any) -> None:
    """Raise ValueError where `top_k` is not a positive integer."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, got {top_k!r}.")


def check_truncate_dim(truncate_dim: int | None, width: int) -> None:
    """Raise ValueError where embeddings of this width have no such number of first dimensions."""
    if truncate_dim is not None and not 1 <= truncate_dim <= width:
        limits = f"from 1 to {width}, the width of the model's embeddings"
        raise ValueError(f"truncate_dim must be {limits}, got {truncate_dim}.")


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Sort texts by length and split them into batches of little padding.

    The split minimises padded tokens plus a fixed cost for each batch, by dynamic programming. That cost is a twentieth
    of `max_tokens`, as measured on a CPU.

    `max_tokens` of a batch include padding; a longer text is a batch of its own. Returns the positions of the texts,
    each in one batch, the longest texts first.

    >>> length_batches([2, 9, 3, 8], max_tokens=48)
    [[1, 3], [2, 0]]
    """
    order = np.argsort([-length for length in lengths], kind="stable")
    descending = np.array(lengths, dtype=int)[order]
    positions = np.arange(len(order))
    costs = np.zeros(len(order) + 1, dtype=int)  # of the first n texts, split best
    starts = np.zeros(len(order) + 1, dtype=int)  # where the last of their batches begins
    first = 0
    for end in range(1, len(order) + 1):
        while first < end - 1 and (end - first) * descending[first] > max_tokens:
            first += 1
        candidates = costs[first:end] + (end - positions[first:end]) * descending[first:end]
        best = candidates.argmin()
        starts[end] = first + best
        costs[end] = candidates[best] + max_tokens // 20
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end] : end].tolist())
        end = starts[end]
    return batches[::-1]


def pad_batch(input_ids: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Token ids of B texts, T at the most -> `input_ids` and `attention_mask` (bool), both (B, T)."""
    lengths = [len(ids) for ids in input_ids]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.tensor(list(chain.from_iterable(input_ids)))
    return {"input_ids": torch.full(mask.shape, pad_token_id).masked_scatter_(mask, ids), "attention_mask": mask}


def with_prompt(config: Any, kind: str, texts: Sequence[str]) -> list[str]:
    """Texts of a kind, `query` or `document`, behind the model's prompt for it, where there is one."""
    check_texts(texts, "texts")
    return [config.prompts.get(kind, "") + text for text in texts]


def encode(
    model: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    truncate_dim: int | None = None,
    normalize: bool = True,
    show_progress_bar: bool = False,
) -> Tensor:
    """Embed texts.

    Args:
        model: a `TinyBertModel`. It is put in evaluation mode, and back if it was training.
        texts: N strings; what exceeds the context length is cut off.
        batch_tokens: tokens of one forward pass, padding included; None chooses by the model's device.
        truncate_dim: keep the first D dimensions, for models trained so (Kusupati et al. 2022, arXiv:2205.13147).
        normalize: make the rows' length 1 (after truncation), so that a dot product is the cosine similarity.

    Returns: (N, H or D) fp32 on the CPU; `.numpy()` is the same memory as an array.

    Raises:
        TypeError: if `texts` is not a list of strings.
        ValueError: if a number is out of range.
    """
    texts = check_texts(texts, "texts")
    windows = encode_stream(
        model, tokenizer, texts, batch_tokens, truncate_dim, normalize, show_progress_bar=show_progress_bar
    )
    return torch.cat([*windows, torch.empty(0, truncate_dim or model.config.hidden_size)])


def encode_stream(
    model: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    batch_tokens: int | None = None,
    truncate_dim: int | None = None,
    normalize: bool = True,
    window: int = 16_384,
    show_progress_bar: bool = False,
) -> Iterator[Tensor]:
    """`encode` for texts that do not fit in memory, or whose embeddings do not: window by window, in their order.

    Of any iterable of strings no more than `window` texts are read ahead, tokenised and sorted by length at a time.

    Yields: (window, H or D) fp32 on the CPU; the last has the rows that are left.
    Raises, at the window concerned: as `encode`.
    """
    check_truncate_dim(truncate_dim, model.config.hidden_size)
    batch_tokens = default_batch_tokens(model) if batch_tokens is None else batch_tokens
    for name, value in (("batch_tokens", batch_tokens), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    if isinstance(texts, str) or hasattr(texts, "columns"):  # it would be read letter by letter, or name by name
        check_texts(texts, "texts")
    total = len(texts) if isinstance(texts, Sized) else None
    remaining, first = iter(texts), 0
    seconds = 0.1 if sys.stderr.isatty() else 30.0  # between two updates; a log would fill up with them
    with tqdm(total=total, unit="text", desc="Encoding", disable=not show_progress_bar, mininterval=seconds) as bar:
        while part := list(islice(remaining, window)):
            check_texts(part, "texts", first)
            first += len(part)
            embeddings = embed_window(model, tokenizer, part, batch_tokens, bar)[:, :truncate_dim]
            yield (torch.nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings).cpu()


def default_batch_tokens(model: Encoder) -> int:
    """On a CPU as many tokens as the caches of its cores hold; many on an accelerator, so that it is never idle."""
    return 512 * torch.get_num_threads() if model.device.type == "cpu" else 65_536


def embed_window(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_tokens: int, bar: tqdm
) -> Tensor:
    """Encode each distinct text once, in batches of texts of like length; (N, H) fp32 on the model's device."""
    rows: dict[str, int] = {}
    row_of = [rows.setdefault(text, len(rows)) for text in texts]
    bar.update(len(texts) - len(rows))
    max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokens = tokenizer(
        [text[: LONGEST_WORD * max_length] for text in rows],  # it would read all of a book, and then cut
        truncation=True,
        max_length=max_length,
        return_token_type_ids=False,
        return_attention_mask=False,
    )["input_ids"]
    embeddings = torch.empty(len(rows), model.config.hidden_size, device=model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for positions in length_batches([len(ids) for ids in tokens], batch_tokens):
                batch = pad_batch([tokens[i] for i in positions], tokenizer.pad_token_id)
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                embeddings[positions] = model(**batch).pooler_output.float()
                bar.update(len(positions))
    finally:
        model.train(was_training)
    return embeddings[row_of]


class SemanticSearchPipeline(Pipeline):
    """Rank chunks of text by their meaning's closeness to a query.

    Call it with `(query, chunks, top_k=3)` or with one dictionary of these three keys; `query` is a string or a list
    of strings. One query gives a list of `{"index", "score", "text"}`, best first, where `index` is the chunk's place
    in `chunks` and `score` the cosine similarity; a list of queries gives a list of such lists. `top_k` beyond the
    number of chunks returns them all.

    `pipeline("semantic-search", ..., truncate_dim=128)` compares the first 128 dimensions only: made for models trained
    with `--matryoshka_dims`. A model's prompts are put before the query and the chunks; `encode` puts none.

    Raises:
        TypeError: if a query or a chunk is not a string.
        ValueError: if a query is empty, there are no chunks, or `top_k` is not a positive integer.
    """

    def __call__(self, query: Any, chunks: Sequence[str] | None = None, top_k: int = 3) -> list:
        if isinstance(query, dict):
            if unknown := set(query) - {"query", "chunks", "top_k"}:
                raise ValueError(f"Unknown keys {sorted(unknown)}; a search has the keys query, chunks and top_k.")
            return self(query.get("query"), query.get("chunks", chunks), query.get("top_k", top_k))
        return super().__call__({"query": query, "chunks": chunks, "top_k": top_k})

    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        """Embed texts as they are: (N, H or D), rows of length 1. Options as in the function `encode`."""
        return encode(self.model, self.tokenizer, texts, **{**self._forward_params, **options})

    def encode_query(self, texts: Sequence[str], **options: Any) -> Tensor:
        """`encode` with the model's prompt for queries before each text."""
        return self.encode(with_prompt(self.model.config, "query", texts), **options)

    def encode_document(self, texts: Sequence[str], **options: Any) -> Tensor:
        """`encode` with the model's prompt for documents before each text."""
        return self.encode(with_prompt(self.model.config, "document", texts), **options)

    def _sanitize_parameters(self, truncate_dim: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            known = "a search takes query, chunks and top_k, and loading it truncate_dim"
            raise ValueError(f"Unknown arguments {sorted(kwargs)}; {known}.")
        return {}, {} if truncate_dim is None else {"truncate_dim": truncate_dim}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        chunks = inputs["chunks"]
        queries = check_queries(inputs["query"])
        empty = chunks is None or (isinstance(chunks, str) and not chunks)
        chunks = [] if empty else check_texts(chunks, "chunks")
        if not chunks:
            raise ValueError("There are no chunks to search. Pass chunks=[...], the texts to rank.")
        check_top_k(inputs["top_k"])
        return inputs | {"queries": queries, "chunks": chunks}

    def _forward(self, model_inputs: dict[str, Any], **options: int) -> dict[str, Any]:
        queries, chunks = model_inputs["queries"], model_inputs["chunks"]
        config = self.model.config
        prompted = [*with_prompt(config, "query", queries), *with_prompt(config, "document", chunks)]
        embeddings = self.encode(prompted, **options)
        scores = embeddings[: len(queries)] @ embeddings[len(queries) :].T  # (queries, chunks)
        return model_inputs | {"scores": scores}

    def postprocess(self, model_outputs: dict[str, Any]) -> list:
        chunks = model_outputs["chunks"]
        best = model_outputs["scores"].topk(min(model_outputs["top_k"], len(chunks)))
        rankings = [
            [{"index": i, "score": score, "text": chunks[i]} for score, i in zip(scores, indices, strict=True)]
            for scores, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return rankings[0] if isinstance(model_outputs["query"], str) else rankings
