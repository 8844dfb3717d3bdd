"""The best passages of a search are ranked anew by their tokens (MaxSim), and the sentence that answers is marked.

python -m pytest tests/test_rerank.py -q
"""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS
from transformers import PreTrainedTokenizerBase, pipeline

from tinybert_hf import SemanticSearchPipeline, TinyBertConfig, TinyBertModel
from tinybert_hf.encoding import SearchPipeline
from tinybert_hf.pipeline_tinybert import SENTENCE, fuse_scores, token_states

QUERIES = ["listen to music", "archives", "a text editor for the terminal"]
MIXED = "Fast mail 🙂 for every terminal. Cafe\u0301 photos, drawn! 音楽を聴く。 Read archives"


@pytest.fixture
def model(config: TinyBertConfig) -> TinyBertModel:
    """Weights far from their small initial values, so that the states differ; and prompts."""
    torch.manual_seed(0)
    config.initializer_range = 0.5
    config.prompts = {"query": "find: ", "document": "text: "}
    return TinyBertModel(config).eval()


@pytest.fixture(params=[SemanticSearchPipeline, SearchPipeline])
def search(
    request: pytest.FixtureRequest, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> SemanticSearchPipeline:
    """As it travels, and with the kernels of the package."""
    return request.param(model=model, tokenizer=tokenizer)


def states(search: SemanticSearchPipeline, text: str) -> np.ndarray:
    """Last hidden states of one text's own tokens, with rows of length 1, without `encode`."""
    with torch.no_grad():
        batch = search.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        rows = search.model(**batch).last_hidden_state[0].numpy().astype(float)
    return rows[1:-1] / np.linalg.norm(rows[1:-1], axis=1, keepdims=True)


def written_out(search: SemanticSearchPipeline, query: str, text: str) -> float:
    """MaxSim in numpy."""
    of_query, of_text = states(search, f"find: {query}"), states(search, f"text: {text}")
    return float(np.mean([max(float(q @ t) for t in of_text) for q in of_query]))


# ---- MaxSim ----


def test_maxsim_is_the_mean_of_the_best_cosines(search: SemanticSearchPipeline) -> None:
    found = search.maxsim(QUERIES, [TEXTS, TEXTS[2:5], TEXTS[:1]])
    for query, scores, texts in zip(QUERIES, found, [TEXTS, TEXTS[2:5], TEXTS[:1]], strict=True):
        assert scores == pytest.approx([written_out(search, query, text) for text in texts], abs=1e-5)
    assert max(found[0]) - min(found[0]) > 0.02, "this test would be vacuous"


def test_order_and_padding_change_no_score(search: SemanticSearchPipeline) -> None:
    texts = [*TEXTS, "mail", " ".join(TEXTS)]
    expected = [search.maxsim([QUERIES[0]], [[text]])[0][0] for text in texts]
    order = random.Random(0).sample(range(len(texts)), len(texts))
    found = search.maxsim([QUERIES[0]], [[texts[i] for i in order]])[0]
    assert found == pytest.approx([expected[i] for i in order], abs=1e-5)


def test_a_passage_of_several_queries_is_encoded_once(search: SemanticSearchPipeline) -> None:
    shapes: list[torch.Size] = []
    search.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    scores = search.maxsim(QUERIES, [TEXTS, TEXTS, [TEXTS[0], TEXTS[0]]])
    assert sum(rows for rows, _ in shapes) == len(QUERIES) + len(TEXTS)
    assert scores[2][0] == scores[2][1]


def test_a_query_that_found_nothing_has_nothing_to_rank_anew(search: SemanticSearchPipeline) -> None:
    assert search.refine(QUERIES[:2], [[], []], top_k=3, rerank=2, highlight=True) == [[], []]


@pytest.mark.parametrize("blank", ["", "  \n", "\u200b"])
@pytest.mark.parametrize("prompts", [{}, {"document": "text: "}])
def test_a_blank_passage_has_a_score_and_no_sentence(
    search: SemanticSearchPipeline, prompts: dict[str, str], blank: str
) -> None:
    search.model.config.prompts = prompts
    hits = search(QUERIES[0], [*TEXTS, blank], top_k=9, rerank=9, highlight=True)
    (hit,) = (hit for hit in hits if hit["text"] == blank)
    assert 0 <= hit["score"] <= 1
    assert hit["highlight"] in ((0, 0), (0, len(blank)))


@pytest.mark.parametrize("kind", [SemanticSearchPipeline, SearchPipeline])
def test_without_layers_words_are_compared(
    kind: Any, config: TinyBertConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    config.num_hidden_layers, config.pooling, config.position_embedding_type = 0, "mean", "rotary"
    search = kind(model=TinyBertModel(config).eval(), tokenizer=tokenizer)
    assert search.maxsim(["text in a terminal"], [[TEXTS[6], TEXTS[7]]])[0][0] == pytest.approx(1.0)
    assert search("archives", TEXTS, rerank=3, highlight=True)[0]["text"] == "read and write compressed archives"


def test_an_encoder_without_token_states_is_an_error(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    class Pooled:
        config, device, training = model.config, model.device, False

        def __call__(self, **batch: Any) -> Any:
            return SimpleNamespace(last_hidden_state=None)

        def eval(self) -> None: ...

        def train(self, mode: bool = True) -> None: ...

    with pytest.raises(ValueError, match=r"gives no token states\. Rank anew with the PyTorch model of its folder"):
        list(token_states(Pooled(), tokenizer, "query", ["music"]))


# ---- Ranking anew ----


def expected_ranking(search: SemanticSearchPipeline, query: str, depth: int) -> list[tuple[int, float]]:
    """The fusion written out, of all texts ranked by the cosine and then the first `depth` by MaxSim."""
    embeddings = [search.encode_query([query])[0].numpy(), *search.encode_document(TEXTS).numpy()]
    cosines = {i: float(embeddings[0] @ row) for i, row in enumerate(embeddings[1:])}
    first = sorted(cosines, key=lambda i: -cosines[i])[:depth]
    maxsims = {i: written_out(search, query, TEXTS[i]) for i in first}

    def scaled(scores: dict[int, float], i: int) -> float:
        low, high = min(scores.values()), max(scores.values())
        return (scores[i] - low) / (high - low) if i in scores else 0.0

    scores = {i: 0.25 * scaled(maxsims, i) + 0.75 * scaled(cosines, i) for i in cosines}
    return sorted(scores.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("depth", [3, len(TEXTS), 1_000])
def test_the_best_are_ranked_by_both_scores_and_the_rest_stays_behind(
    search: SemanticSearchPipeline, depth: int
) -> None:
    search.model.config.rerank_weight = 0.25
    rankings = search(QUERIES, TEXTS, top_k=len(TEXTS), rerank=depth)
    for query, hits in zip(QUERIES, rankings, strict=True):
        expected = expected_ranking(search, query, depth)
        assert [hit["index"] for hit in hits] == [i for i, _ in expected]
        assert [hit["score"] for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert [hit["text"] for hit in hits] == [TEXTS[hit["index"]] for hit in hits]


def test_fewer_results_than_are_ranked_anew_are_the_first_of_them(search: SemanticSearchPipeline) -> None:
    assert search(QUERIES[0], TEXTS, top_k=2, rerank=8) == search(QUERIES[0], TEXTS, top_k=8, rerank=8)[:2]


def test_none_does_what_the_configuration_says_and_0_leaves_it_out(search: SemanticSearchPipeline) -> None:
    plain = search(QUERIES[0], TEXTS)
    assert search(QUERIES[0], TEXTS, rerank=0) == plain
    search.model.config.rerank_depth = 8
    assert search(QUERIES[0], TEXTS) == search({"query": QUERIES[0], "chunks": TEXTS, "rerank": 8})
    assert search(QUERIES[0], TEXTS) != plain == search(QUERIES[0], TEXTS, rerank=0)


@pytest.mark.parametrize("rerank", [-1, 1.5, True, "3"])
def test_a_wrong_depth_is_an_error(search: SemanticSearchPipeline, rerank: Any) -> None:
    with pytest.raises(ValueError, match=f"rerank must be 0 or a positive integer, got {rerank!r}"):
        search("music", TEXTS, rerank=rerank)


@pytest.mark.parametrize("options", [{"rerank_depth": -1}, {"rerank_depth": 1.0}, {"rerank_weight": 1.1}])
def test_a_configuration_with_a_wrong_depth_or_weight_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* must be a number from 0 to"):
        TinyBertConfig(**options)


def test_depth_and_weight_are_saved_and_the_folders_own_code_obeys_them(
    search: SemanticSearchPipeline, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    search.model.config.rerank_depth, search.model.config.rerank_weight = 5, 0.25
    search.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    from_folder = pipeline("semantic-search", model=str(tmp_path), trust_remote_code=True)
    found, expected = from_folder(QUERIES[0], TEXTS, highlight=True), search(QUERIES[0], TEXTS, highlight=True)
    assert [hit | {"score": pytest.approx(hit["score"], abs=1e-5)} for hit in expected] == found
    assert found[0]["score"] != from_folder(QUERIES[0], TEXTS, rerank=0)[0]["score"]


def test_the_weight_is_that_of_the_first_scores() -> None:
    assert fuse_scores(1.0, {"a": 2.0, "b": 5.0}, {"a": 1.0, "b": 0.0}) == {"b": 1.0, "a": 0.0}
    assert list(fuse_scores(0.0, {"a": 2.0, "b": 5.0}, {"a": 1.0, "b": 0.0})) == ["a", "b"]


# ---- The sentence that answers ----


def sentences(text: str) -> list[str]:
    return [found[0] for found in SENTENCE.finditer(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! (Three?) Version 1.2 is out.", ["One.", "Two!", "(Three?)", "Version 1.2 is out."]),
        ("世界は大きい。本当?「はい。」終", ["世界は大きい。", "本当?「はい。」", "終"]),
        ("a list\n- one\n\n- two. three", ["a list", "- one", "- two.", "three"]),
        ("Yes 🙂 👩‍👩‍👧. Cafe\u0301.", ["Yes 🙂 👩‍👩‍👧.", "Cafe\u0301."]),
        ("  \n ", []),
    ],
)
def test_sentences_end_where_unicode_says(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_characters() -> None:
    assert [part.count("word") for part in sentences("word " * 100)] == [60, 40]
    parts = sentences("e\u0301" * 400)
    assert "".join(parts) == "e\u0301" * 400 and not any(part.startswith("\u0301") for part in parts)


def best_sentence(search: SemanticSearchPipeline, query: str, text: str, parts: Sequence[str]) -> str:
    """Of the text's states, those of each sentence's tokens compared with the query's, in numpy."""
    tokens = search.tokenizer(f"text: {text}", truncation=True, max_length=32, return_offsets_mapping=True)
    offsets = tokens["offset_mapping"][1:-1]
    of_query, of_text = states(search, f"find: {query}"), states(search, f"text: {text}")
    scores = {}
    for part in parts:
        start = text.index(part) + len("text: ")
        rows = [i for i, (first, _) in enumerate(offsets) if start <= first < start + len(part)]
        if rows:
            scores[part] = float((of_query @ of_text[rows].T).max(axis=1).mean())
    return max(scores, key=lambda part: scores[part])


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("text", ["Edit text. Play music! Send mail.", MIXED, "音楽を聴く。 a good movie. 🙂🙂"])
def test_the_marked_sentence_has_the_highest_maxsim(search: SemanticSearchPipeline, query: str, text: str) -> None:
    (hit,) = search(query, [text], highlight=True)
    start, end = hit["highlight"]
    assert text[start:end] == best_sentence(search, query, text, sentences(text))


def test_each_query_marks_its_own_sentence(search: SemanticSearchPipeline) -> None:
    together = [hits[0]["highlight"] for hits in search(QUERIES, [MIXED], highlight=True)]
    assert together == [search(query, [MIXED], highlight=True)[0]["highlight"] for query in QUERIES]


def test_only_what_was_read_is_marked(search: SemanticSearchPipeline) -> None:
    text = "music " * 20 + "mail " * 40
    (hit,) = search("mail", [text], highlight=True)
    offsets = search.tokenizer(f"text: {text}", truncation=True, max_length=32, return_offsets_mapping=True)
    assert hit["highlight"] == (0, max(end for _, end in offsets["offset_mapping"]) - len("text: "))


def test_nothing_is_marked_unless_it_is_asked_for(search: SemanticSearchPipeline) -> None:
    assert not any("highlight" in hit for hit in search(QUERIES[0], TEXTS, rerank=3))
