"""Texts to embeddings, and semantic search as a transformers pipeline. This file travels to the Hub.

from transformers import pipeline

search = pipeline("semantic-search", model="OWNER/NAME", trust_remote_code=True)
search("how do I undo a commit?", ["git revert ...", "git push ..."], top_k=1)
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from itertools import chain, islice
from typing import Any, Protocol

import regex
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Pipeline, PreTrainedTokenizerBase

LONGEST_WORD = 100  # letters; WordPiece takes a longer word for [UNK]
# Up to a sentence's end by Unicode's properties (UAX #29), a line's, or 300 characters. `regex` comes with transformers.
SENTENCE = regex.compile(r'(?m)\S.{,299}?(\p{STerm}[\p{Pe}\p{Pf}"]*(?=\s|(?<=\P{ASCII}))|$)|\S.{,299}(?!\S)|\S\X{,299}')


class Encoder(Protocol):
    """What `encode` needs of a `TinyBertModel`: it makes of (B, T) ids and mask an output with `pooler_output` (B, H)."""

    config: Any
    device: torch.device
    training: bool

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any: ...

    def train(self, mode: bool) -> Any: ...


def check_iterable(texts: Any, name: str) -> None:
    """Raise TypeError for what gives no texts one by one: a string gives its letters, a mapping and a frame their keys."""
    if isinstance(texts, str | bytes | Mapping | Set) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {type(texts).__name__}. For one text pass [text].")


def check_texts(texts: Any, name: str, first: int = 0) -> list[str]:
    """The strings of a list, an array, a column or a generator. Raise where one is none; counted from `first`."""
    check_iterable(texts, name)
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


def check_top_k(top_k: Any, rerank: Any = 0) -> None:
    """Raise ValueError where `top_k` is not a positive integer, or `rerank` neither one nor 0."""
    for name, value, least in (("top_k", top_k, 1), ("rerank", rerank, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be {'' if least else '0 or '}a positive integer, got {value!r}.")


def check_truncate_dim(truncate_dim: int | None, width: int) -> None:
    """Raise ValueError where embeddings of this width have no such number of first dimensions."""
    if truncate_dim is not None and not 1 <= truncate_dim <= width:
        raise ValueError(f"truncate_dim must be from 1 to {width}, the width of the embeddings, got {truncate_dim}.")


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Sort texts by length and split them into batches of little padding.

    A batch has at most `max_tokens` tokens, a twentieth of them padding at most. A longer text is a batch of its own.

    Returns: the positions of the texts, each in one batch, the longest texts first.

    >>> length_batches([2, 9, 3, 8], max_tokens=48)
    [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    padding = 0  # of the last batch
    for position in sorted(range(len(lengths)), key=lambda position: lengths[position], reverse=True):
        longest = lengths[batches[-1][0]] if batches else 0
        padding += longest - lengths[position]
        if not batches or padding > max_tokens // 20 or (len(batches[-1]) + 1) * longest > max_tokens:
            batches.append([])
            padding = 0
        batches[-1].append(position)
    return batches


def pad_batch(input_ids: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Token ids of B texts, T at the most -> `input_ids` and `attention_mask` (bool), both (B, T)."""
    lengths = [len(ids) for ids in input_ids]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.tensor(list(chain.from_iterable(input_ids)))
    return {"input_ids": torch.full(mask.shape, pad_token_id).masked_scatter_(mask, ids), "attention_mask": mask}


def with_prompt(config: Any, kind: str, texts: Sequence[str]) -> list[str]:
    """Texts of a kind, `query` or `document`, behind the model's prompt for it, where there is one."""
    return [config.prompts.get(kind, "") + text for text in check_texts(texts, "texts")]


def cut_texts(texts: Iterable[str], max_length: int) -> list[str]:
    """Texts without what is far beyond `max_length` tokens: a tokenizer would read all of a book before it cuts."""
    return [text[: LONGEST_WORD * max_length] for text in texts]


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

    Returns: (N, H or D) fp32 on the CPU.
    Raises: TypeError: if `texts` is not a list of strings. ValueError: if a number is out of range.
    """
    texts = check_texts(texts, "texts")
    options = {"normalize": normalize, "show_progress_bar": show_progress_bar}
    windows = encode_stream(model, tokenizer, texts, batch_tokens, truncate_dim, **options)
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
    check_iterable(texts, "texts")
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
    embeddings = torch.empty(len(rows), model.config.hidden_size, device=model.device)
    for positions, _, output in run_batches(model, tokenizer, list(rows), batch_tokens):
        embeddings[positions] = output.pooler_output.float()
        bar.update(len(positions))
    return embeddings[row_of]


@torch.inference_mode()
def run_batches(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_tokens: int, offsets: bool = False
) -> Iterator[tuple[list[int], Any, Any]]:
    """Run the model on batches of texts of like length: their positions, the tokens of all texts, and the output."""
    if not texts:  # which a tokenizer that is asked for places does not take
        return
    max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokens = tokenizer(
        cut_texts(texts, max_length),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
    )
    ids = tokens["input_ids"]
    was_training = model.training
    model.train(False)
    try:
        for positions in length_batches([len(text) for text in ids], batch_tokens):
            batch = pad_batch([ids[i] for i in positions], tokenizer.pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            yield positions, tokens, model(**batch)
    finally:
        model.train(was_training)


def token_states(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, kind: str, texts: Sequence[str]
) -> Iterator[tuple[int, list[tuple[int, int]], Tensor]]:
    """The tokens of texts of a kind, `query` or `document`, without [CLS] and [SEP] (a blank text has no others).

    Yields: a text's position, where in it its T tokens stand (those of the prompt before 0), and their last hidden states,
    (T, H) fp32 of length 1. Raises: ValueError: if the encoder gives no states, as that of `onnx.py`.
    """
    prompt = len(model.config.prompts.get(kind, ""))
    batches = run_batches(model, tokenizer, with_prompt(model.config, kind, texts), default_batch_tokens(model), True)
    for positions, tokens, output in batches:
        if output.last_hidden_state is None:
            raise ValueError("This encoder gives no token states. Rank anew with the PyTorch model of its folder.")
        for position, states in zip(positions, output.last_hidden_state, strict=True):
            offsets = tokens["offset_mapping"][position]
            kept = [i for i, (start, end) in enumerate(offsets) if start < end] or [*range(len(offsets))]
            places = [(offsets[i][0] - prompt, offsets[i][1] - prompt) for i in kept]
            yield position, places, torch.nn.functional.normalize(states[kept].float(), dim=-1)


def max_similarity(query: Tensor, passage: Tensor) -> float:
    """MaxSim (Khattab and Zaharia 2020, arXiv:2004.12832): the mean over the query's tokens of the best cosine to one of the
    passage's; of states (T, H) of length 1."""
    return (query @ passage.T).amax(dim=1).mean().item()


def fuse_scores(weight: float, first: Mapping[Any, float], second: Mapping[Any, float]) -> dict[Any, float]:
    """One query's results by two scores as one ranking, best first: document -> score of 0 to 1.

    The weighted sum of both scores, each scaled to 0 .. 1 over what it found (a convex combination, Bruch et al. 2023,
    arXiv:2210.11934): `weight` of the first, the rest of 1 of the second. What one of them did not find has 0 of it.

    >>> fuse_scores(0.3, {"a": 9.0, "b": 3.0}, {"b": 0.5, "c": 0.1})
    {'b': 0.7, 'a': 0.3, 'c': 0.0}
    """
    scores: dict[Any, float] = defaultdict(float)
    for found, share in ((first, weight), (second, 1 - weight)):
        low, high = min(found.values(), default=0.0), max(found.values(), default=0.0)
        for document, score in found.items():
            scores[document] += share * ((score - low) / (high - low) if high > low else 1.0)
    return dict(sorted(scores.items(), key=lambda item: item[1], reverse=True))


class SemanticSearchPipeline(Pipeline):
    """Rank chunks of text by their meaning's closeness to a query.

    Call it with `(query, chunks, top_k=3, rerank=None, highlight=False)` or with one dictionary of these keys; `query` is
    a string or a list of strings. One query gives a list of `{"index", "score", "text"}`, best first, where `index` is the
    chunk's place in `chunks` and `score` the cosine similarity; a list of queries gives a list of such lists. `top_k`
    beyond the number of chunks returns them all.

    `rerank` ranks so many of the best anew by their tokens, and makes scores sums from 0 to 1 (`refine`). 0 leaves it out.
    None does what the model's configuration says. With `highlight` each result has `highlight`, the (start, end) of the
    sentence in its text that answers (`mark`).

    `pipeline("semantic-search", ..., truncate_dim=128)` compares the first 128 dimensions only: made for models trained
    with `--matryoshka_dims`. A model's prompts are put before the query and the chunks; `encode` puts none.

    Raises: TypeError: if a query or a chunk is not a string. ValueError: if a query is empty, there are no chunks, or a
        number is out of range.
    """

    def __call__(
        self, query: Any, chunks: Sequence[str] = (), top_k: int = 3, rerank: int | None = None, highlight: bool = False
    ) -> list:
        given = query if isinstance(query, dict) else {"query": query}
        search = {"query": None, "chunks": chunks, "top_k": top_k, "rerank": rerank, "highlight": highlight}
        if unknown := set(given) - set(search):
            raise ValueError(f"Unknown keys {sorted(unknown)}; a search has the keys {', '.join(search)}.")
        return super().__call__(search | given)

    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        """Embed texts as they are: (N, H or D), rows of length 1. Options as in the function `encode`."""
        return encode(self.model, self.tokenizer, texts, **{**self._forward_params, **options})

    def encode_query(self, texts: Sequence[str], **options: Any) -> Tensor:
        """`encode` with the model's prompt for queries before each text."""
        return self.encode(with_prompt(self.model.config, "query", texts), **options)

    def encode_document(self, texts: Sequence[str], **options: Any) -> Tensor:
        """`encode` with the model's prompt for documents before each text."""
        return self.encode(with_prompt(self.model.config, "document", texts), **options)

    def maxsim(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """MaxSim of each query with each of its passages; of these no more than a batch is in memory, and each encoded once."""
        asking: dict[str, list[int]] = defaultdict(list)  # passage -> the queries that it may answer
        for row, texts in enumerate(passages):
            for text in texts:
                asking[text].append(row)
        distinct = list(asking)
        asked = {row: states for row, _, states in token_states(self.model, self.tokenizer, "query", queries)}
        scores = {
            (row, distinct[position]): max_similarity(asked[row], states)
            for position, _, states in token_states(self.model, self.tokenizer, "document", distinct)
            for row in asking[distinct[position]]
        }
        return [[scores[row, text] for text in texts] for row, texts in enumerate(passages)]

    def mark(self, query: str, hits: list) -> list:
        """Give each hit `highlight`, the (start, end) in its `text` of the sentence that answers, by MaxSim.

        Sentences are those of `SENTENCE`. What exceeds the context length is not read. A blank text has (0, 0).
        """
        ((_, _, asked),) = token_states(self.model, self.tokenizer, "query", [query])
        texts, marks = [hit["text"] for hit in hits], [(0, 0)] * len(hits)
        for position, places, states in token_states(self.model, self.tokenizer, "document", texts):
            best = -1.0
            for start, end in (sentence.span() for sentence in SENTENCE.finditer(texts[position])):
                inside = [i for i, (first, _) in enumerate(places) if start <= first < end]
                if inside and (score := max_similarity(asked, states[inside])) > best:
                    best, marks[position] = score, (start, min(end, places[inside[-1]][1]))
        return [hit | {"highlight": mark} for hit, mark in zip(hits, marks, strict=True)]

    def refine(
        self, queries: Sequence[str], rankings: list[list], top_k: int, rerank: int, highlight: bool = False
    ) -> list[list]:
        """Rank the first `rerank` hits of each query anew, keep `top_k`, and mark in each the sentence that answers.

        A hit is a mapping with a `text` and a `score`, best first. Its new score is `fuse_scores` of MaxSim and the old one.
        Hits behind the first `rerank` stay there, in their order.
        """
        if rerank:
            maxsims = self.maxsim(queries, [[hit["text"] for hit in hits[:rerank]] for hits in rankings])
            before, rankings = rankings, []
            for hits, maxsim in zip(before, maxsims, strict=True):
                scores = dict(enumerate(hit["score"] for hit in hits))
                fused = fuse_scores(self.model.config.rerank_weight, dict(enumerate(maxsim)), scores)
                rankings.append([hits[rank] | {"score": score} for rank, score in fused.items()])
        rankings = [hits[:top_k] for hits in rankings]
        return [self.mark(*pair) for pair in zip(queries, rankings, strict=True)] if highlight else rankings

    def _sanitize_parameters(self, truncate_dim: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            known = "a search takes query, chunks, top_k, rerank and highlight, and loading it truncate_dim"
            raise ValueError(f"Unknown arguments {sorted(kwargs)}; {known}.")
        return {}, {} if truncate_dim is None else {"truncate_dim": truncate_dim}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        chunks = inputs["chunks"]
        queries = check_queries(inputs["query"])
        empty = chunks is None or (isinstance(chunks, str) and not chunks)
        chunks = [] if empty else check_texts(chunks, "chunks")
        if not chunks:
            raise ValueError("There are no chunks to search. Pass chunks=[...], the texts to rank.")
        depth = self.model.config.rerank_depth if inputs["rerank"] is None else inputs["rerank"]
        check_top_k(inputs["top_k"], depth)
        return inputs | {"queries": queries, "chunks": chunks, "depth": depth}

    def _forward(self, model_inputs: dict[str, Any], **options: int) -> dict[str, Any]:
        queries, chunks = model_inputs["queries"], model_inputs["chunks"]
        config = self.model.config
        prompted = [*with_prompt(config, "query", queries), *with_prompt(config, "document", chunks)]
        embeddings = self.encode(prompted, **options)
        return model_inputs | {"scores": embeddings[: len(queries)] @ embeddings[len(queries) :].T}  # (queries, chunks)

    def postprocess(self, model_outputs: dict[str, Any]) -> list:
        queries, chunks, depth, top_k = (model_outputs[name] for name in ("queries", "chunks", "depth", "top_k"))
        best = model_outputs["scores"].topk(min(max(top_k, depth), len(chunks)))
        rankings = [
            [{"index": i, "score": score, "text": chunks[i]} for score, i in zip(scores, indices, strict=True)]
            for scores, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        rankings = self.refine(queries, rankings, top_k, depth, model_outputs["highlight"])
        return rankings[0] if isinstance(model_outputs["query"], str) else rankings
