"""Stage two: its data, its batches and its step."""

import json
from pathlib import Path

import pytest
from training_run import train, write_pairs

from train_retrieval import RetrievalArguments, load_pairs

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
        TINY,
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
    sure = TINY + ",pooling=mean,hidden_dropout_prob=0,attention_probs_dropout_prob=0"
    shared = ["--data", str(pairs), "--eval_data", str(pairs), "--config_overrides", sure]
    shared += ["--max_steps", "4", "--logging_steps", "1", "--report_to", "none"]
    losses = {}
    for name, flags in {
        "alone": [],
        "teacher": ["--teacher", str(model_folder)],
        "widths": ["--matryoshka_dims", "4", "8"],
    }.items():
        out = tmp_path / name
        train("train_retrieval", [*shared, *flags, "--output_dir", str(out)], tmp_path / "log")
        history = json.loads((out / "retrieval_summary.json").read_text())["history"]
        losses[name] = [entry["loss"] for entry in history if "loss" in entry]
    assert losses["teacher"][0] > losses["alone"][0] + 0.01
    assert losses["widths"][0] != pytest.approx(losses["alone"][0], rel=1e-3)
    for values in losses.values():
        assert values[-1] < values[0]


def test_grouping_by_length_does_not_change_the_loss(tmp_path: Path) -> None:
    """Every step's loss, and so every gradient before it, is the same in one group as in many; without dropout, whose
    masks are drawn group by group."""
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    sure = TINY + ",pooling=mean,hidden_dropout_prob=0,attention_probs_dropout_prob=0"
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
