"""Texts to embeddings, and semantic search as a transformers pipeline. This file travels to the Hub.

from transformers import pipeline

search = pipeline("semantic-search", model="OWNER/NAME", trust_remote_code=True)
search("how do I undo a commit?", ["git revert ...", "git push ..."], top_k=1)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase


def check_texts(texts: Any, name: str) -> None:
    """Raise TypeError where `texts` is not a sequence of strings, naming the first offender."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"{name} must be a list of strings, got {type(texts).__name__}. For one text pass [text]."
        )
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, got {type(text).__name__}: {text!r}")


@torch.inference_mode()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Tensor:
    """Embed texts; the one way from text to vector that search, evaluation and training share.

    Texts are encoded longest first, so that a batch holds texts of like length, and returned in the given order.

    Args:
        model: a `TinyBertModel`; it is put in evaluation mode, and back if it was training.
        tokenizer: the model's tokenizer.
        texts: N strings; what exceeds the context length is cut off.
        batch_size: texts in one forward pass.
        show_progress_bar: draw a bar on standard error.

    Returns: (N, H) fp32 on the CPU, rows of length 1, so that a dot product is the cosine similarity.

    Raises: TypeError: if `texts` is not a list of strings.
    """
    check_texts(texts, "texts")
    max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(texts), unit="text", desc="Encoding", disable=not show_progress_bar) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = tokenizer(
                    [texts[i] for i in rows],
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                    return_tensors="pt",
                ).to(model.device)
                pooled = model(**batch).pooler_output.float()
                embeddings[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu()
                bar.update(len(rows))
    finally:
        model.train(was_training)
    return embeddings


class SemanticSearchPipeline(Pipeline):
    """Rank chunks of text by their meaning's closeness to a query.

    Call it with `(query, chunks, top_k=3)` or with one dictionary of these three keys; `query` is a string or a list
    of strings. One query gives a list of `{"index", "score", "text"}`, best first, where `index` is the chunk's place
    in `chunks` and `score` the cosine similarity; a list of queries gives a list of such lists. `top_k` beyond the
    number of chunks returns them all.

    Raises:
        TypeError: if a query or a chunk is not a string.
        ValueError: if a query is empty, there are no chunks, or `top_k` is not a positive integer.
    """

    def __call__(self, query: Any, chunks: Sequence[str] | None = None, top_k: int = 3) -> list:
        if isinstance(query, dict):
            if unknown := set(query) - {"query", "chunks", "top_k"}:
                raise ValueError(
                    f"Unknown keys {sorted(unknown)}; a search has the keys query, chunks and top_k."
                )
            return self(query.get("query"), query.get("chunks", chunks), query.get("top_k", top_k))
        return super().__call__({"query": query, "chunks": chunks, "top_k": top_k})

    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        """Embed texts as the search does: (N, H), rows of length 1. Options as in the function `encode`."""
        return encode(self.model, self.tokenizer, texts, **options)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(f"Unknown arguments {sorted(kwargs)}; a search takes query, chunks and top_k.")
        return {}, {}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        query, chunks, top_k = inputs["query"], inputs["chunks"], inputs["top_k"]
        queries = [query] if isinstance(query, str) else query
        check_texts(queries, "query")
        if not queries or not all(text.strip() for text in queries):
            raise ValueError(f"query is empty: {query!r}. Pass a question or a few words to search for.")
        if chunks is None or (isinstance(chunks, Sequence) and not chunks):
            raise ValueError("There are no chunks to search. Pass chunks=[...], the texts to rank.")
        check_texts(chunks, "chunks")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k must be a positive integer, got {top_k!r}.")
        return inputs | {"queries": list(queries)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        query_embeddings = self.encode(model_inputs["queries"])
        chunk_embeddings = self.encode(model_inputs["chunks"])
        return model_inputs | {"scores": query_embeddings @ chunk_embeddings.T}  # (queries, chunks)

    def postprocess(self, model_outputs: dict[str, Any]) -> list:
        chunks = model_outputs["chunks"]
        best = model_outputs["scores"].topk(min(model_outputs["top_k"], len(chunks)))
        rankings = [
            [
                {"index": index, "score": score, "text": chunks[index]}
                for score, index in zip(scores, indices, strict=True)
            ]
            for scores, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return rankings[0] if isinstance(model_outputs["query"], str) else rankings
