"""Whether ranking anew by the tokens pays is decided on held-out queries."""

import json
from pathlib import Path

import pytest
from training_run import NO_DROPOUT, TINY, train, write_pairs
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel, load_search_pipeline
from tinybert_hf.beir import pairs_as_retrieval
from tinybert_hf.encoding import SearchPipeline
from tinybert_hf.evaluation import RERANK_DEPTH, choose_rerank

WORDS = ["mail", "music", "photos", "archives", "movie", "terminal", "pictures", "editor", "player", "command"]


@pytest.fixture
def search(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> SearchPipeline:
    return SearchPipeline(model=model.eval(), tokenizer=tokenizer)


def test_it_pays_where_the_tokens_find_what_the_vectors_do_not(search: SearchPipeline) -> None:
    """Each query is one word of its answer, whose other words draw the vectors of a random model away."""
    others = "read and write compressed fast electronic text from the line draw manage a"
    answers = [f"{others} {word} {others}" for word in WORDS]
    chosen = choose_rerank(search, pairs_as_retrieval(WORDS, answers, []))
    run = search(WORDS, answers, top_k=len(WORDS), rerank=0)
    before = sum(hits[0]["text"] == answer for hits, answer in zip(run, answers, strict=True))
    assert chosen["rerank_depth"] == RERANK_DEPTH and chosen["results"]["RR@10"] > before / len(WORDS)


def test_it_does_not_pay_where_the_vectors_find_everything(search: SearchPipeline) -> None:
    chosen = choose_rerank(search, pairs_as_retrieval(WORDS, WORDS, []))
    assert chosen["rerank_depth"] == 0 and chosen["results"] == {"nDCG@10": 1.0, "RR@10": 1.0}


def test_what_is_measured_is_a_search_with_the_chosen_weight(search: SearchPipeline) -> None:
    answers = [f"play {word} fast" for word in reversed(WORDS)]
    chosen = choose_rerank(search, pairs_as_retrieval(WORDS, answers, []))
    search.model.config.rerank_weight = chosen["rerank_weight"]
    rankings = search(WORDS, answers, top_k=len(answers), rerank=RERANK_DEPTH)
    ranks = [[hit["index"] for hit in hits].index(row) + 1 for row, hits in enumerate(rankings)]
    assert chosen["results"]["RR@10"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))


@pytest.mark.slow
def test_a_trained_model_says_whether_searches_rank_anew(tmp_path: Path) -> None:
    pairs, out = write_pairs(tmp_path / "pairs.csv", 80, seed=0), tmp_path / "out"
    sizes = f"{TINY},{NO_DROPOUT}"
    flags = ["--data", str(pairs), "--config_overrides", sizes, "--max_steps", "2"]
    train("retrieval", [*flags, "--report_to", "none", "--output_dir", str(out)], tmp_path / "log")
    told = json.loads((out / "retrieval_summary.json").read_text())["rerank"]
    config = load_search_pipeline(out).model.config
    assert (config.rerank_depth, config.rerank_weight) == (told["rerank_depth"], told["rerank_weight"])
    assert "ranked anew" in (tmp_path / "log").read_text()
