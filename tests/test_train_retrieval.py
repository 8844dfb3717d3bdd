"""Stage two: its data, its batches and its step."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from training_run import WORDS, train, write_pairs
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel
from tinybert_hf.data import text_id
from tinybert_hf.tokenization import tokenize_columns
from train_retrieval import Miner, RetrievalArguments, load_pairs, start_from_tokens, weigh_by_rarity

TINY = (
    "vocab_size=300,hidden_size=32,num_hidden_layers=1,residual_initializer_range=0.1,"
    "num_attention_heads=4,intermediate_size=64,"
    "max_position_embeddings=32"
)


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    rows = [f"question {i},reply {i},wrong {i},worse {i}" for i in range(80)]
    (tmp_path / "faq.csv").write_text("\n".join(["q,a,n1,n2", *rows]) + "\n")
    return tmp_path / "faq.csv"


def test_columns_are_renamed_and_held_out_rows_share_no_text(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.csv", 200, seed=0)
    data = load_pairs(RetrievalArguments(data=str(path), eval_size=50))
    assert data.train.column_names == ["query", "answer"]
    assert len(data.evaluation) == 50
    for name in ("query", "answer"):
        assert not set(data.train[name]) & set(data.evaluation[name])


def test_a_missing_negative_column_is_named(triplets: Path) -> None:
    arguments = RetrievalArguments(
        data=str(triplets), query_column="q", answer_column="a", negative_columns=["n3"]
    )
    with pytest.raises(ValueError, match=r"no column 'n3'; it has q, a, n1, n2\. Pass --negative_columns"):
        load_pairs(arguments)


def test_too_few_rows_to_hold_out_are_refused(triplets: Path) -> None:
    with pytest.raises(ValueError, match="Cannot hold out 1000 of 80 rows"):
        load_pairs(RetrievalArguments(data=str(triplets), query_column="q", answer_column="a"))


def test_explicit_negatives_and_accumulation_train(triplets: Path) -> None:
    out = triplets.parent / "out"
    columns = ["--query_column", "q", "--answer_column", "a", "--negative_columns", "n1", "n2"]
    more = [
        "--eval_size",
        "32",
        "--max_steps",
        "3",
        "--gradient_accumulation_steps",
        "2",
        "--logging_steps",
        "1",
    ]
    sizes = ["--per_device_train_batch_size", "4", "--config_overrides", TINY, "--report_to", "none"]
    arguments = ["--data", str(triplets), *columns, *more, *sizes, "--output_dir", str(out)]
    train("train_retrieval", arguments, triplets.parent / "log")
    summary = json.loads((out / "retrieval_summary.json").read_text())
    assert summary["data"]["texts_per_row"] == 4
    assert (summary["steps"], summary["rows_per_step"]) == (3, 8)
    assert [entry["step"] for entry in summary["history"] if "loss" in entry] == [1, 2, 3]


def test_a_warm_start_needs_mean_pooling(triplets: Path) -> None:
    arguments = ["--data", str(triplets), "--query_column", "q", "--answer_column", "a", "--eval_size", "32"]
    arguments += [
        "--config_overrides",
        TINY + ",pooling=cls",
        "--warm_start_epochs",
        "1",
        "--output_dir",
        str(triplets.parent),
    ]
    log = triplets.parent / "log"
    with pytest.raises(AssertionError):
        train("train_retrieval", arguments, log)
    assert "--warm_start_epochs 1.0 trains the mean of token embeddings, and this encoder pools by 'cls'" in (
        log.read_text()
    )


def test_training_follows_a_teacher_at_every_width(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    sure = TINY + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
    shared = ["--data", str(pairs), "--eval_data", str(pairs), "--config_overrides", sure]
    shared += [
        "--max_steps",
        "12",
        "--learning_rate",
        "3e-3",
        "--logging_steps",
        "1",
        "--report_to",
        "none",
    ]
    losses = {}
    for name, flags in {
        "alone": [],
        "teacher": ["--teacher", str(model_folder), "--distillation_weight", "1"],
        "tokens": ["--teacher", str(model_folder), "--warm_start_epochs", "1"],
        "widths": ["--matryoshka_dims", "4", "8"],
    }.items():
        out = tmp_path / name
        train("train_retrieval", [*shared, *flags, "--output_dir", str(out)], tmp_path / "log")
        history = json.loads((out / "retrieval_summary.json").read_text())["history"]
        losses[name] = [entry["loss"] for entry in history if "loss" in entry]
    assert losses["teacher"][0] > losses["alone"][0] + 0.01
    assert losses["tokens"][0] != pytest.approx(losses["alone"][0], rel=1e-3)
    assert losses["widths"][0] != pytest.approx(losses["alone"][0], rel=1e-3)
    for values in losses.values():
        assert values[-1] < values[0]


def test_documents_alone_train(tmp_path: Path) -> None:
    lines = [
        f"{WORDS[i % 16]} for {WORDS[i // 16]}, a program. It has {i} parts that do it." for i in range(200)
    ]
    documents = [json.dumps({"body": line, "name": f"item {i}"}) for i, line in enumerate(lines)]
    (tmp_path / "notes.jsonl").write_text("\n".join(documents))
    arguments = ["--documents", str(tmp_path / "notes.jsonl"), "--text_column", "body", "--eval_size", "50"]
    arguments += [
        "--config_overrides",
        TINY,
        "--num_train_epochs",
        "6",
        "--report_to",
        "none",
    ]
    arguments += ["--learning_rate", "0.005", "--logging_steps", "1", "--output_dir", str(tmp_path / "out")]
    train("train_retrieval", [*arguments, "--title_column", "name"], tmp_path / "log")
    summary = json.loads((tmp_path / "out" / "retrieval_summary.json").read_text())
    assert summary["data"]["data"] == str(tmp_path / "notes.jsonl")
    assert (summary["data"]["train_rows"], summary["data"]["eval_rows"]) == (150, 50)
    losses = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_documents_and_what_needs_fixed_queries_are_refused_together() -> None:
    with pytest.raises(ValueError, match="--documents makes new queries in every epoch"):
        RetrievalArguments(documents="notes.jsonl", mined_negatives=1)
    with pytest.raises(ValueError, match="--documents makes new queries in every epoch"):
        RetrievalArguments(documents="notes.jsonl", teacher="t", distillation_weight=1)


@pytest.mark.parametrize("start", [{}, {"warm_start_epochs": 1.0, "model": "outputs/model"}])
def test_a_teacher_with_nothing_to_teach_is_refused(start: dict) -> None:
    with pytest.raises(ValueError, match="--teacher t has nothing to teach"):
        RetrievalArguments(teacher="t", **start)


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"--distillation_weight 1.0 needs a --teacher"):
        RetrievalArguments(distillation_weight=1.0)


@pytest.mark.parametrize("width", [4, 1000])
def test_tokens_start_as_the_teacher_has_them(model: TinyBertModel, width: int) -> None:
    before = model.get_input_embeddings().weight.detach().clone()
    learned = 7 * torch.randn(len(before), width)
    start_from_tokens(model, learned)
    after = model.get_input_embeddings().weight
    own = min(width, after.shape[1])
    similarity = torch.nn.functional.cosine_similarity(after[:, :own], learned[:, :own])
    torch.testing.assert_close(similarity, torch.ones(len(before)))
    assert after[:, :own].std().item() == pytest.approx(before.std().item(), rel=1e-4)
    assert torch.equal(after[:, own:], before[:, own:])


def test_a_warm_start_begins_with_rare_words_heavier(model: TinyBertModel) -> None:
    before = model.get_input_embeddings().weight.detach().clone()
    weigh_by_rarity(model, [[1, 5, 5, 6, 2], [1, 5, 2], [1, 5, 7, 2]])
    ratio = (model.get_input_embeddings().weight / before).mean(dim=1)
    torch.testing.assert_close(
        ratio[5] / ratio[6], torch.tensor(math.log1p(0.5 / 3.5) / math.log1p(2.5 / 1.5))
    )
    assert ratio[1] == ratio[2] == ratio[5] < ratio[6] == ratio[7] < ratio[8]
    assert ratio[[1, 2, 5, 6, 7]].mean().item() == pytest.approx(1, abs=1e-5)


def test_mined_negatives_are_answers_of_other_rows_that_the_model_ranks_high(
    tmp_path: Path, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {
        "query": ["fast mail", "music", "photos"],
        "answer": ["send fast mail", "fast mail too", "pictures"],
    }
    pairs = Dataset.from_dict(texts)
    arguments = RetrievalArguments(mined_negatives=1)
    miner = Miner(arguments, pairs, tokenize_columns(pairs, tokenizer, 32), tokenizer)
    negatives, ids = miner.negatives(model, [0, 2], epoch=0)
    numbers = {text_id(text): text for text in texts["answer"]}
    for row, tokens, number in zip([0, 2], negatives, ids.tolist(), strict=True):
        assert numbers[number] != texts["answer"][row]
        assert tokens == tokenizer(numbers[number])["input_ids"]
    before = miner.rows
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.normal_()
    miner.negatives(model, [0], epoch=0)
    assert miner.rows is before, "mined twice in one epoch"
    miner.negatives(model, [0], epoch=1)
    assert miner.rows is not before


def test_grouping_by_length_does_not_change_the_loss(tmp_path: Path) -> None:
    """Every step's loss, and so every gradient before it, is the same in one group as in many; without dropout, whose
    masks are drawn group by group."""
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    sure = TINY + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
    losses = {}
    for tokens in ("16384", "40"):
        out = tmp_path / tokens
        shared = [
            "--data",
            str(pairs),
            "--eval_data",
            str(pairs),
            "--config_overrides",
            sure,
            "--report_to",
            "none",
        ]
        steps = ["--max_steps", "6", "--logging_steps", "1", "--learning_rate", "0.005"]
        train(
            "train_retrieval",
            [*shared, *steps, "--micro_batch_tokens", tokens, "--output_dir", str(out)],
            out.parent / "log",
        )
        summary = json.loads((out / "retrieval_summary.json").read_text())
        losses[tokens] = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses["40"] == pytest.approx(losses["16384"], rel=1e-4)
    assert losses["40"][-1] < 0.99 * losses["40"][0], "this test would be vacuous: nothing was learned"
