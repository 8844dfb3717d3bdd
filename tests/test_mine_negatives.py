"""Mined negatives: the hardest that are safe to call wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from retrieval_setup import save_sentence_transformer
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinybert_hf import mine_negatives as module
from tinybert_hf import ranking
from tinybert_hf.cli import main
from tinybert_hf.data import load_data, read_columns
from tinybert_hf.encoding import load_search_pipeline
from tinybert_hf.mine_negatives import mine_by_embeddings, mine_data, mine_negatives
from tinybert_hf.training.arguments import RetrievalArguments
from tinybert_hf.training.retrieval import load_pairs

PAIRS = [
    ("music player", "play music from the command line"),
    ("music library", "sort music and play it at night"),
    ("archive tool", "read and write compressed archives"),
    ("photo album", "manage photos and draw pictures"),
    ("mail client", "send and receive electronic mail"),
]
FIVE = torch.arange(5)


def mine(scores: list[list[float]], num_negatives: int, **options: object) -> Tensor:
    """One query a row of scores; query i is answered by candidate i, unless ids say otherwise."""
    matrix = torch.tensor(scores)
    ids = {
        "query_ids": torch.arange(len(matrix)),
        "answer_ids": torch.arange(len(matrix)),
        "candidate_ids": torch.arange(matrix.shape[1]),
    }
    return mine_negatives(lambda rows: matrix[rows].clone(), num_negatives=num_negatives, **(ids | options))  # type: ignore[arg-type]


def test_the_best_below_the_margin_are_taken_in_the_order_of_their_scores() -> None:
    # 0.95 x 0.8 = 0.76: candidate 1 is above it, candidate 2 is not.
    assert mine([[0.8, 0.77, 0.75, 0.1, 0.7]], 2).tolist() == [[2, 4]]


def test_without_a_margin_only_higher_scores_are_left_out() -> None:
    assert mine([[0.8, 0.77, 0.81, 0.1]], 1, margin=0.0).tolist() == [[1]]


def test_the_margin_of_a_negative_score_lies_below_it() -> None:
    mined = mine([[-0.2, -0.205, -0.22, -0.9]], 1)  # below -0.2 - 0.05 x 0.2 = -0.21
    assert mined.tolist() == [[2]]


def test_an_answer_far_down_the_ranking_has_negatives_right_below_it() -> None:
    scores = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0))
    scores[0, 0] = 0.5
    mined = mine(scores.tolist(), 3)
    below = scores[0].masked_fill(scores[0] > 0.475, -1)
    assert mined.tolist() == [below.topk(3).indices.tolist()]


def test_what_answers_the_same_query_in_another_row_is_no_negative() -> None:
    # Rows 0 and 1 ask the same; rows 2 and 3 have the same answer.
    scores = [[0.9, 0.8, 0.3, 0.2], [0.8, 0.9, 0.2, 0.3], [0.1, 0.2, 0.9, 0.3], [0.2, 0.1, 0.9, 0.3]]
    mined = mine(scores, 2, query_ids=torch.tensor([7, 7, 8, 9]), answer_ids=torch.tensor([0, 1, 2, 2]))
    assert mined.tolist() == [[2, 3], [3, 2], [3, 1], [3, 0]]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 40, generator=generator)
    ids = {
        "query_ids": torch.randint(20, (50,), generator=generator),
        "answer_ids": torch.randint(40, (50,), generator=generator),
    }
    whole = mine(scores.tolist(), 4, **ids, candidate_ids=torch.arange(40))
    monkeypatch.setattr(module, "MOST_TOGETHER", 7)
    parts = mine(scores.tolist(), 4, **ids, candidate_ids=torch.arange(40))
    checked = 0
    for row in range(50):
        same_query = ids["query_ids"] == ids["query_ids"][row]
        right = set(ids["answer_ids"][same_query].tolist())
        limit = 0.95 * scores[row, ids["answer_ids"][row]]
        allowed = [i for i in range(40) if i not in right and scores[row, i] <= limit]
        best = sorted(allowed, key=lambda i: -scores[row, i])[:4]
        checked += len(best)
        for columns in (whole[row].tolist(), parts[row].tolist()):  # what is drawn at random depends on the block
            assert columns[: len(best)] == best
            assert not set(columns) & right
            assert len(set(columns)) == 4
    assert checked > 80, "this test would be vacuous"


def test_many_candidates_are_scored_for_fewer_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, sizes = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)), []

    def score(rows: slice) -> Tensor:
        sizes.append(scores[rows].numel())
        return scores[rows].clone()

    ids = torch.arange(50) % 40
    monkeypatch.setattr(ranking, "SCORES_TOGETHER", 400)
    mine_negatives(score, torch.arange(50), ids, torch.arange(40), num_negatives=1)
    assert sizes == [400] * 5


def test_what_the_ranking_did_not_find_is_drawn_at_random() -> None:
    scores = [[9.0, 5.0] + [0.0] * 98]
    drawn = {tuple(mine(scores, 3, seed=seed)[0].tolist()) for seed in range(5)}
    assert all(columns[0] == 1 and len(set(columns) - {0, 1}) == 2 for columns in drawn)
    assert len(drawn) > 1


def test_rows_of_one_block_do_not_share_what_is_drawn_at_random() -> None:
    drawn = mine([[0.0] * 10 for _ in range(10)], 3, margin=1.0)
    assert len({tuple(row) for row in drawn.tolist()}) > 5


def test_texts_above_the_margin_are_drawn_only_where_nothing_else_is_left() -> None:
    scores = [[9.0, 12.0, 12.0, 12.0, 0.0, 0.0]]
    for seed in range(5):
        columns = mine(scores, 3, seed=seed)[0].tolist()
        assert set(columns[:2]) == {4, 5} and columns[2] in (1, 2, 3)


def test_depth_chooses_among_the_best_and_the_seed_repeats_the_choice() -> None:
    scores = [[1.0, *[0.9 - 0.01 * i for i in range(30)]]] * 20
    ids = {"answer_ids": torch.zeros(20, dtype=torch.int64), "candidate_ids": torch.arange(31)}
    mined = mine(scores, 3, depth=10, **ids)
    assert torch.equal(mined, mine(scores, 3, depth=10, **ids))
    assert not torch.equal(mined, mine(scores, 3, depth=10, seed=1, **ids))
    assert set(mined.flatten().tolist()) == set(range(1, 11))
    assert torch.equal(mined, mined.sort().values), "the highest score comes first"
    assert all(len(set(columns)) == 3 for columns in mined.tolist())


def test_embeddings_give_row_numbers_and_equal_answers_their_first_row() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    queries = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.6, 0.8]])  # cosines do not depend on the scale
    answer_ids = torch.tensor([50, 40, 40, 30])
    mined = mine_by_embeddings(queries, answers, torch.arange(4), answer_ids, 1, margin=0.0)
    # Query 0: 1, 0.6, 0. Queries 1 and 2: 0, 0.8, 1, of which theirs is 0.8. Query 3: its answer 0.8; 0.6, 1.
    assert mined.tolist() == [[1], [0], [0], [0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be 1 or more, got 0"),
        ({"num_negatives": 3, "depth": 2}, r"depth must be num_negatives \(3\) or more, got 2"),
        ({"num_negatives": 1, "margin": 1.5}, "margin must be from 0 to 1, got 1.5"),
        ({"num_negatives": 5}, "has 4 candidates that do not answer it, and num_negatives is 5"),
    ],
)
def test_unusable_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mine(torch.rand(5, 5).tolist(), **options)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{query}\t{answer}\n" for query, answer in [("query", "answer"), *PAIRS]))
    return path


def mine_file(path: Path, corpus: list[str] | None = None, **options: Any) -> Dataset:
    columns = {"query": "query", "answer": "answer"}
    return mine_data(read_columns(str(path), columns, columns), corpus or [], **options)


def test_bm25_finds_the_answer_with_the_same_word_and_draws_the_rest(pairs: Path) -> None:
    rows = mine_file(pairs, num_negatives=2)
    assert rows.column_names == ["query", "answer", "negative_0", "negative_1"]
    by_query = {row["query"]: row for row in rows}
    assert by_query["music library"]["negative_0"] != by_query["music library"]["negative_1"]
    for row in rows:
        assert row["answer"] not in (row["negative_0"], row["negative_1"])


def test_texts_of_the_corpus_are_candidates_and_equal_ones_are_not(pairs: Path) -> None:
    music = "a festival of music in summer, with pictures and a long command of every single line"
    rows = mine_file(pairs, [music, f" {PAIRS[0][1]} ", music], num_negatives=1, margin=0.0)
    row = next(row for row in rows if row["query"] == "music player")
    assert row["negative_0"] == music


@pytest.fixture
def sentence_transformer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    return save_sentence_transformer(tmp_path / "other", tokenizer)


@pytest.mark.parametrize("kind", ["ours", "SentenceTransformer"])
def test_a_model_mines_what_its_own_scores_say(
    kind: str, pairs: Path, model_folder: Path, sentence_transformer: Path
) -> None:
    folder = model_folder if kind == "ours" else sentence_transformer
    rows = mine_file(pairs, model=str(folder), num_negatives=1, margin=0.0)
    texts = [answer for _, answer in PAIRS]
    scores = encode_alone(kind, folder, [query for query, _ in PAIRS]) @ encode_alone(kind, folder, texts).T
    checked = 0
    for i, row in enumerate(rows):
        allowed = [j for j in range(5) if j != i and scores[i, j] <= scores[i, i]]
        if allowed:
            assert row["negative_0"] == texts[max(allowed, key=lambda j: scores[i, j].item())]
            checked += 1
    assert checked, "this test would be vacuous"


def encode_alone(kind: str, folder: Path, texts: list[str]) -> Tensor:
    if kind != "ours":
        return SentenceTransformer(str(folder)).encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    return load_search_pipeline(str(folder)).encode(texts)


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz", "mined.parquet"])
def test_what_is_written_is_what_training_reads(name: str, pairs: Path) -> None:
    out = pairs.parent / "new" / name
    rows = mine_file(pairs, num_negatives=2)
    main(["mine", "--data", str(pairs), "--output_file", str(out), "--num_negatives", "2"])
    columns = ["negative_0", "negative_1"]
    data = load_pairs(RetrievalArguments(data=str(out), eval_size=1, negative_columns=columns))
    assert data.train.column_names == ["query", "answer", *columns]
    assert load_data(str(out)).to_list() == rows.to_list()
