"""Texts become the same vectors however they are batched, and a search is the ranking of their cosines.

python -m pytest tests/test_pipeline_tinybert.py -q
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXTS
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, pipeline

from tinybert_hf import SemanticSearchPipeline, TinyBertConfig, TinyBertModel
from tinybert_hf.pipeline_tinybert import (
    check_queries,
    check_top_k,
    check_truncate_dim,
    encode,
    encode_stream,
    length_batches,
    pad_batch,
)

QUERIES = ["listen to music", "archives", "a text editor for the terminal"]


@pytest.fixture
def model(config: TinyBertConfig) -> TinyBertModel:
    """Weights far from their small initial values, so that the cosines differ."""
    torch.manual_seed(0)
    config.initializer_range = 0.5
    return TinyBertModel(config).eval()


@pytest.fixture
def search(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> SemanticSearchPipeline:
    return SemanticSearchPipeline(model=model, tokenizer=tokenizer)


@pytest.fixture
def batches(model: TinyBertModel) -> list[torch.Size]:
    """The shape, texts x tokens, of every batch that the model sees."""
    shapes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True)
    return shapes


def cosines(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, query: str) -> list[float]:
    """Each text's cosine with the query, one text at a time and without `encode`."""

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0].double()

    return [torch.cosine_similarity(embed(query), embed(text), dim=0).item() for text in TEXTS]


# ---- encode ----


@pytest.mark.parametrize("max_tokens", [1, 20, 60, 200, 800])
def test_a_batch_ends_where_the_next_text_would_bring_too_much_padding_or_too_many_tokens(max_tokens: int) -> None:
    rng = random.Random(max_tokens)
    lengths = [rng.randint(1, 25) for _ in range(40)]
    batches = length_batches(lengths, max_tokens)
    assert sorted(chain(*batches)) == list(range(40))
    assert [lengths[i] for i in chain(*batches)] == sorted(lengths, reverse=True)

    def fits(batch: list[int]) -> bool:
        tokens = len(batch) * lengths[batch[0]]
        return tokens <= max_tokens and tokens - sum(lengths[i] for i in batch) <= max_tokens // 20

    assert all(len(batch) == 1 or fits(batch) for batch in batches)
    assert not any(fits([*batch, following[0]]) for batch, following in pairwise(batches))


def test_nothing_is_split_into_no_batches() -> None:
    assert length_batches([], max_tokens=10) == []


def test_rows_are_the_texts_in_their_order_and_have_length_1(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = sorted(TEXTS, key=len)  # encode itself goes from long to short
    embeddings = encode(model, tokenizer, texts)
    assert (embeddings.shape, embeddings.dtype) == ((len(texts), 32), torch.float32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(texts)))
    with torch.no_grad():
        for row, text in zip(embeddings, texts, strict=True):
            alone = model(**tokenizer(text, return_tensors="pt")).pooler_output[0]
            torch.testing.assert_close(row, alone / alone.norm(), rtol=1e-5, atol=1e-5)


def test_padding_fills_up_to_the_longest_and_is_masked() -> None:
    batch = pad_batch([[5, 6], [7], [8, 9, 10]], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 3], [7, 3, 3], [8, 9, 10]]
    assert batch["attention_mask"].tolist() == [[True, True, False], [True, False, False], [True] * 3]


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_the_token_budget_does_not_change_an_embedding(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    actual = encode(model, tokenizer, TEXTS, batch_tokens=batch_tokens)
    torch.testing.assert_close(actual, encode(model, tokenizer, TEXTS, 20), rtol=1e-5, atol=1e-6)


def test_a_batch_keeps_to_its_tokens_with_padding(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, batches: list[torch.Size]
) -> None:
    texts = [*TEXTS, "mail"]
    encode(model, tokenizer, texts, batch_tokens=80)
    assert all(shape.numel() <= 80 for shape in batches) and len(batches) > 1
    assert sum(rows for rows, _ in batches) == len(texts)
    tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert sum(shape.numel() for shape in batches) > tokens, "this test would be vacuous: no padding"
    batches.clear()
    encode(model, tokenizer, texts)
    assert len(batches) == 1, "by default a few short texts are one batch"


def test_equal_texts_are_encoded_once(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, batches: list[torch.Size]
) -> None:
    embeddings = encode(model, tokenizer, ["play music", "mail", "play music", "play music"])
    assert sum(texts for texts, _ in batches) == 2
    assert torch.equal(embeddings[[2, 3]], embeddings[[0, 0]])
    assert not torch.allclose(embeddings[1], embeddings[0], atol=1e-2)


def test_encoding_is_without_dropout_and_restores_the_mode(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = encode(model, tokenizer, TEXTS)
    assert not model.training
    model.train()
    assert torch.equal(encode(model, tokenizer, TEXTS), expected)
    assert model.training

    def fail(*_: Any) -> None:
        raise InterruptedError

    model.register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        encode(model, tokenizer, TEXTS)
    assert model.training  # after an error too


def test_texts_beyond_the_context_are_cut(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    context = model.config.max_position_embeddings
    fits = "music " * (context - 4) + "edit text"  # and [CLS] and [SEP]
    assert len(tokenizer(fits)["input_ids"]) == context
    exact, long, shorter = encode(model, tokenizer, [fits, fits + " mail" * 500, fits.removesuffix(" text")])
    torch.testing.assert_close(long, exact)
    assert not torch.allclose(shorter, exact, atol=1e-4)


def test_half_precision_is_returned_as_fp32(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = encode(model, tokenizer, TEXTS)
    embeddings = encode(model.bfloat16(), tokenizer, TEXTS)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(TEXTS)))
    assert (embeddings * expected).sum(dim=1).min() > 0.99


def test_no_texts_give_no_rows(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(model, tokenizer, []).shape == (0, 32)


def test_the_first_dimensions_are_cut_out_and_made_length_1_again(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = encode(model, tokenizer, TEXTS)[:, :8]
    cut = encode(model, tokenizer, TEXTS, truncate_dim=8)
    torch.testing.assert_close(cut, first / first.norm(dim=1, keepdim=True))
    assert encode(model, tokenizer, [], truncate_dim=8).shape == (0, 8)


def test_without_normalization_the_rows_are_the_models(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with torch.no_grad():
        pooled = model(**tokenizer(TEXTS[:1], return_tensors="pt")).pooler_output
    torch.testing.assert_close(encode(model, tokenizer, TEXTS[:1], normalize=False), pooled)
    cut = encode(model, tokenizer, TEXTS[:1], truncate_dim=8, normalize=False)
    torch.testing.assert_close(cut, pooled[:, :8])


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_arrays_and_may_be_trained_on(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, normalize: bool
) -> None:
    for embeddings in (
        encode(model, tokenizer, TEXTS, normalize=normalize),
        *encode_stream(model, tokenizer, TEXTS, normalize=normalize),
    ):
        array = embeddings.numpy()
        array[0, 0] = 7
        assert embeddings[0, 0] == 7  # the same memory
        head = torch.nn.Linear(32, 1)
        head(embeddings).sum().backward()
        assert head.weight.grad is not None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"truncate_dim": 33}, "truncate_dim must be from 1 to 32, .* got 33"),
        ({"truncate_dim": 0}, "truncate_dim must be from 1 to 32, .* got 0"),
        ({"batch_tokens": 0}, "batch_tokens must be 1 or more, got 0"),
    ],
)
def test_a_number_out_of_range_is_an_error(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(model, tokenizer, TEXTS, **options)


@pytest.mark.parametrize(
    "texts, message",
    [
        ("music", "texts must be a list of strings, got str"),
        (None, "texts must be a list of strings, got NoneType"),
        (["music", 3], r"texts\[1\] must be a string, got int: 3"),
        (["music", float("nan")], r"texts\[1\] must be a string, got float: nan"),
        (pd.DataFrame({"text": ["music"]}), "texts must be a list of strings, got DataFrame"),
        ({"text": "music"}, "texts must be a list of strings, got dict"),
        ({"music"}, "texts must be a list of strings, got set"),
        (np.array([["music"]]), r"texts\[0\] must be a string, got ndarray"),
    ],
)
def test_what_is_no_list_of_strings_is_named(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, texts: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        encode(model, tokenizer, texts)


class Counting:
    """The least that `encode` needs of a model. It embeds a text by its number of tokens."""

    config = SimpleNamespace(hidden_size=2, max_position_embeddings=6)
    device = torch.device("cpu")
    training = True

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert not self.training and input_ids.shape == attention_mask.shape
        number = attention_mask.sum(dim=1)
        return SimpleNamespace(pooler_output=torch.stack((number, 7 - number), dim=1))

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool = True) -> None:
        self.training = mode


def test_what_stands_in_for_a_model_is_encoded_with(tokenizer: PreTrainedTokenizerBase) -> None:
    stand_in = Counting()
    texts = ["music", "music mail", "music mail text edit a"]
    rows = encode(stand_in, tokenizer, texts, normalize=False)
    assert rows.tolist() == [[3, 4], [4, 3], [6, 1]]  # [CLS] and [SEP] too, and no more than six
    assert stand_in.training


# ---- encode_stream ----


def test_a_stream_reads_one_window_at_a_time_and_is_encode(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    stream = encode_stream(model, tokenizer, texts(), window=3)
    assert read == []
    windows = [next(stream)]
    assert read == TEXTS[:3]
    windows += stream
    assert [len(rows) for rows in windows] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(windows), encode(model, tokenizer, TEXTS), rtol=1e-5, atol=1e-6)


def test_between_the_windows_the_model_trains_on(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.train()
    for _ in encode_stream(model, tokenizer, TEXTS, window=3):
        assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "generator": iter,
    "series": pd.Series,
    "string series": lambda texts: pd.Series(texts, index=range(9, 9 + len(texts)), dtype="string"),
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, dtype=object),
    "column": lambda texts: Dataset.from_dict({"text": texts})["text"],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_texts_may_come_in_any_column(kind: str, search: SemanticSearchPipeline) -> None:
    assert torch.equal(search.encode(COLUMNS[kind](TEXTS)), search.encode(TEXTS))
    assert torch.equal(search.encode_query(COLUMNS[kind](TEXTS)), search.encode_query(TEXTS))
    assert search("music", COLUMNS[kind](TEXTS)) == search("music", TEXTS)
    assert search(COLUMNS[kind](TEXTS[:2]), TEXTS) == search(TEXTS[:2], TEXTS)


@pytest.mark.parametrize("texts", [{"text": "music"}, {"music"}, b"music", None, pd.DataFrame({"text": ["music"]})])
def test_a_stream_of_what_is_no_list_of_strings_is_refused(
    texts: Any, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(TypeError, match="texts must be a list of strings, got"):
        next(encode_stream(model, tokenizer, texts))


def test_half_a_character_is_named_with_its_place(search: SemanticSearchPipeline) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
        search.encode(["é", "ab\ud800"])


def test_what_no_token_is_made_of_is_not_tokenized(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    book = " ".join(TEXTS * 1000)
    read: list[str] = []

    def watched(texts: list[str], **options: Any) -> Any:
        read.extend(texts)
        return tokenizer(texts, **options)

    watched.model_max_length, watched.pad_token_id = tokenizer.model_max_length, tokenizer.pad_token_id
    assert torch.equal(encode(model, watched, [book]), encode(model, tokenizer, [book[:20_000]]))
    assert read == [book[: 100 * tokenizer.model_max_length]]


@pytest.mark.parametrize(
    "texts, window, error, message",
    [
        ("music", 2, TypeError, "texts must be a list of strings, got str"),
        (["music", "mail", None], 2, TypeError, r"texts\[2\] must be a string, got NoneType"),
        (["music"], 0, ValueError, "window must be 1 or more, got 0"),
    ],
)
def test_a_wrong_stream_is_an_error(
    model: TinyBertModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Any,
    window: int,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        list(encode_stream(model, tokenizer, iter(texts) if isinstance(texts, list) else texts, window=window))


@pytest.mark.parametrize("total", ["8/8", "8text"])
def test_the_bar_counts_every_text(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str], total: str
) -> None:
    texts: Any = [*TEXTS[:7], TEXTS[0]]
    list(encode_stream(model, tokenizer, texts if "/" in total else iter(texts), show_progress_bar=True))
    assert total in capsys.readouterr().err


# ---- search ----


@pytest.mark.parametrize("query", QUERIES)
def test_a_search_ranks_by_the_cosine_of_the_first_tokens(
    search: SemanticSearchPipeline, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, query: str
) -> None:
    expected = cosines(model, tokenizer, query)
    order = sorted(range(len(TEXTS)), key=lambda i: -expected[i])
    assert order != sorted(order) and max(expected) - min(expected) > 0.05
    results = search(query, TEXTS, top_k=len(TEXTS))
    assert [result["index"] for result in results] == order
    assert [result["text"] for result in results] == [TEXTS[i] for i in order]
    assert [result["score"] for result in results] == pytest.approx([expected[i] for i in order], abs=1e-5)
    assert all(set(result) == {"index", "score", "text"} for result in results)


def test_every_way_of_calling_gives_the_same_results(search: SemanticSearchPipeline) -> None:
    expected = search(QUERIES[0], TEXTS, top_k=2)
    assert len(expected) == 2
    assert search(query=QUERIES[0], chunks=TEXTS, top_k=2) == expected
    assert search({"query": QUERIES[0], "chunks": TEXTS, "top_k": 2}) == expected
    assert search({"query": QUERIES[0]}, TEXTS, top_k=2) == expected
    assert search({"query": QUERIES[0], "chunks": tuple(TEXTS)}, top_k=2) == expected


def test_three_results_are_the_default(search: SemanticSearchPipeline) -> None:
    assert search(QUERIES[0], TEXTS) == search(QUERIES[0], TEXTS, top_k=3)
    assert len(search({"query": QUERIES[0], "chunks": TEXTS})) == 3


def test_top_k_beyond_the_chunks_returns_them_all(search: SemanticSearchPipeline) -> None:
    results = search(QUERIES[0], TEXTS, top_k=1000)
    assert sorted(result["index"] for result in results) == list(range(len(TEXTS)))


def test_many_queries_are_searched_at_once(search: SemanticSearchPipeline) -> None:
    together = search(QUERIES, TEXTS, top_k=2)
    assert len(together) == len(QUERIES)
    for query, results in zip(QUERIES, together, strict=True):
        alone = search(query, TEXTS, top_k=2)
        assert [result["index"] for result in results] == [result["index"] for result in alone]
        assert [r["score"] for r in results] == pytest.approx([r["score"] for r in alone], abs=1e-6)
    assert search(QUERIES[:1], TEXTS, top_k=2) == [search(QUERIES[0], TEXTS, top_k=2)]


def test_equal_chunks_have_equal_scores_and_their_own_places(search: SemanticSearchPipeline) -> None:
    results = search("play music", ["play music", "read archives", "play music"], top_k=2)
    assert sorted(result["index"] for result in results) == [0, 2]
    assert [result["score"] for result in results] == pytest.approx([1.0, 1.0])


def test_one_chunk_is_enough(search: SemanticSearchPipeline) -> None:
    assert [result["index"] for result in search("music", ["mail"])] == [0]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("", TEXTS), ValueError, "query is empty: ''"),
        (("  ", TEXTS), ValueError, "query is empty"),
        (([], TEXTS), ValueError, "query is empty"),
        ((["music", ""], TEXTS), ValueError, "query is empty"),
        ((None, TEXTS), TypeError, "query must be a list of strings, got NoneType"),
        ((["music", 3], TEXTS), TypeError, r"query\[1\] must be a string, got int"),
        (("music", []), ValueError, "no chunks to search"),
        (("music", ""), ValueError, "no chunks to search"),
        (("music",), ValueError, "no chunks to search"),
        (("music", "one text"), TypeError, r"chunks must be a list of strings, got str.*\[text\]"),
        (("music", ["mail", None]), TypeError, r"chunks\[1\] must be a string, got NoneType"),
        (("music", TEXTS, 0), ValueError, "top_k must be a positive integer, got 0"),
        (("music", TEXTS, 1.5), ValueError, "top_k must be a positive integer, got 1.5"),
        (("music", TEXTS, True), ValueError, "top_k must be a positive integer, got True"),
        (({"query": "music", "passages": TEXTS},), ValueError, r"Unknown keys \['passages'\]"),
        (({"chunks": TEXTS},), TypeError, "query must be a list of strings, got NoneType"),
    ],
)
def test_a_wrong_call_is_an_error_that_says_what_is_wrong(
    search: SemanticSearchPipeline, arguments: tuple, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(*arguments)


def test_queries_become_a_list_and_a_wrong_one_is_named() -> None:
    assert check_queries("music") == ["music"]
    assert check_queries(("music", "mail")) == ["music", "mail"]
    for query, error, message in (
        (" ", ValueError, r"--query is empty: ' '\. Pass a question"),
        ([], ValueError, r"--query is empty: \[\]"),
        (["music", "\n"], ValueError, "--query is empty"),
        (["music", 3], TypeError, r"--query\[1\] must be a string, got int: 3"),
        (3, TypeError, "--query must be a list of strings, got int"),
    ):
        with pytest.raises(error, match=message):
            check_queries(query, "--query")


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, "3", None])
def test_a_number_of_results_is_a_positive_integer(top_k: Any) -> None:
    check_top_k(1)
    with pytest.raises(ValueError, match=f"top_k must be a positive integer, got {top_k!r}"):
        check_top_k(top_k)


@pytest.mark.parametrize("truncate_dim", [0, -1, 9])
def test_a_width_is_one_that_the_embeddings_have(truncate_dim: int) -> None:
    for fine in (None, 1, 8):
        check_truncate_dim(fine, width=8)
    with pytest.raises(ValueError, match=f"truncate_dim must be from 1 to 8, .* got {truncate_dim}"):
        check_truncate_dim(truncate_dim, width=8)


def test_an_unknown_option_is_an_error(
    search: SemanticSearchPipeline, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(TypeError, match="limit"):
        search("music", TEXTS, limit=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"Unknown arguments \['limit'\]"):
        SemanticSearchPipeline(model=model, tokenizer=tokenizer, limit=3)


def test_a_search_loaded_with_truncate_dim_compares_the_first_dimensions(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    search = SemanticSearchPipeline(model=model, tokenizer=tokenizer, truncate_dim=8)
    query, chunk = search.encode(["fast mail", "send mail"], truncate_dim=8)
    assert search("fast mail", ["send mail"])[0]["score"] == pytest.approx((query @ chunk).item(), abs=1e-5)
    assert search.encode(["music"]).shape == (1, 8)


def test_the_folder_gives_the_same_search_with_its_own_code(
    search: SemanticSearchPipeline, model: TinyBertModel, model_folder: Path
) -> None:
    from_folder = pipeline("semantic-search", model=str(model_folder), trust_remote_code=True)
    assert type(from_folder).__module__.startswith("transformers_modules.")
    assert from_folder(QUERIES, TEXTS) == search(QUERIES, TEXTS)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.text(min_size=1, max_size=40).filter(str.strip),
    chunks=st.lists(st.text(max_size=60), min_size=1, max_size=6),
    top_k=st.integers(1, 9),
    rerank=st.integers(0, 4),
    highlight=st.booleans(),
)
def test_a_search_of_any_texts_is_brute_force(
    search: SemanticSearchPipeline, query: str, chunks: list[str], top_k: int, rerank: int, highlight: bool
) -> None:
    hits = search(query, chunks, top_k=top_k, rerank=rerank, highlight=highlight)
    found = [hit["index"] for hit in hits]
    assert len(set(found)) == len(found) == min(top_k, len(chunks))
    assert [hit["text"] for hit in hits] == [chunks[i] for i in found]
    if not rerank:
        alone = [(search.encode([query]) @ search.encode([chunk]).T).item() for chunk in chunks]
        np.testing.assert_allclose([hit["score"] for hit in hits], [alone[i] for i in found], atol=1e-5)
        best = sorted(alone, reverse=True)[: len(found)]
        np.testing.assert_allclose([hit["score"] for hit in hits], best, atol=1e-5)
    for hit in hits if highlight else []:
        start, end = hit["highlight"]
        assert 0 <= start <= end <= len(hit["text"])
