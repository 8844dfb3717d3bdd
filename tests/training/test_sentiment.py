"""Stage one: single texts, pairs, and the Hub's default data set."""

import json
import os
import sys
from pathlib import Path

import hub_datasets
import pytest
from fresh_process import run
from loopback_hub import LoopbackHub
from training_run import ROOT, TINY, start, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tinybert_hf import InputError, SentimentArguments
from tinybert_hf.training.sentiment import load_examples

GOOD = ["a good film", "really great music", "i love it", "a fine and lovely game", "best phone so far"]
BAD = ["a bad film", "really awful music", "i hate it", "a dull and ugly game", "worst phone so far"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines = ["review,mood", *(f"{text},happy" for text in GOOD * 8), *(f"{text},sad" for text in BAD * 8)]
    (tmp_path / "reviews.csv").write_text("\n".join([*lines, ",happy"]) + "\n")
    return tmp_path / "reviews.csv"


def flags(reviews: Path, *more: str) -> list[str]:
    return [
        *("--data", str(reviews), "--eval_data", str(reviews), "--text_columns", "review"),
        *("--label_column", "mood", "--config_overrides", TINY, "--num_train_epochs", "4"),
        *("--output_dir", str(reviews.parent / "out"), "--per_device_train_batch_size", "8"),
        *("--learning_rate", "0.005", "--save_steps", "10", "--report_to", "tensorboard", *more),
    ]


@pytest.mark.slow
def test_labelled_sentences_of_a_file_are_learned(reviews: Path) -> None:
    train("sentiment", flags(reviews), reviews.parent / "log")
    out = reviews.parent / "out"
    summary = json.loads((out / "sentiment_summary.json").read_text())
    assert summary["results"]["accuracy"] == summary["results"]["f1_macro"] == 1.0
    assert summary["data"]["labels"] == ["happy", "sad"]
    assert "dropped 1 of 81 rows with a blank value" in (reviews.parent / "log").read_text()
    assert list((out / "runs").rglob("events.out.tfevents.*")), "tensorboard has nothing to show"
    classify = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(out),
        tokenizer=AutoTokenizer.from_pretrained(out),
    )
    assert [result["label"] for result in classify(["a good film", "worst phone so far"])] == ["happy", "sad"]


@pytest.mark.slow
def test_stage_two_starts_from_the_encoder_of_stage_one(reviews: Path) -> None:
    train("sentiment", flags(reviews, "--max_steps", "2"), reviews.parent / "log")
    pairs = reviews.parent / "pairs.csv"
    pairs.write_text(
        "query,answer\n" + "".join(f"{a} {i},{b} {i}\n" for i in range(8) for a, b in zip(GOOD, BAD, strict=True))
    )
    out = str(reviews.parent / "retrieval")
    shared = ["--data", str(pairs), "--eval_data", str(pairs), "--report_to", "none", "--max_steps", "1"]
    start_ = ["--model", str(reviews.parent / "out"), "--learning_rate", "1e-9", "--output_dir", out]
    train("retrieval", [*shared, *start_], reviews.parent / "log2")
    from safetensors.torch import load_file

    before = load_file(reviews.parent / "out" / "model.safetensors")
    after = load_file(Path(out) / "model.safetensors")
    assert set(before) == {f"tinybert.{name}" for name in after} | {"classifier.weight", "classifier.bias"}
    for name, tensor in after.items():
        assert tensor.sub(before[f"tinybert.{name}"]).abs().max() < 1e-6, name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text_columns", "text"], "has no column 'text'; it has review, mood. Pass --text_columns"),
        (["--label_column", "label"], "has no column 'label'; it has review, mood. Pass --label_column"),
        (["--text_columns", "a", "b", "c"], "--text_columns takes one column or two, got a b c"),
        (["--data", "nowhere.csv"], "nowhere.csv does not exist"),
        (["--config_overrides", "hidden_siz=8"], "--config_overrides hidden_siz=8: key hidden_siz"),
        (["--report_to", "no-such-tracker"], "no-such-tracker"),
    ],
)
def test_bad_input_ends_with_a_message(reviews: Path, more: list[str], message: str) -> None:
    (process,) = start("sentiment", flags(reviews, *more), reviews.parent / "log")
    process.join()
    output = (reviews.parent / "log").read_text()
    assert (process.exitcode, "Traceback" in output) == (1, False), output
    assert message in output


def test_an_evaluation_label_that_training_has_not_is_named(reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("review,mood\nfine,bored\n")
    arguments = SentimentArguments(
        data=str(reviews), eval_data=str(other), text_columns=["review"], label_column="mood"
    )
    with pytest.raises(InputError, match="labels unknown to the model: bored; the known ones are happy, sad"):
        load_examples(arguments)


def test_a_file_alone_holds_rows_out(tmp_path: Path) -> None:
    lines = [f"sentence {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    data, _ = load_examples(SentimentArguments(data=str(tmp_path / "reviews.csv"), eval_size=20))
    assert (len(data.train), len(data.evaluation)) == (40, 20)
    assert not set(data.train["text"]) & set(data.evaluation["text"])


# ---- Data sets of the Hub ----


@pytest.fixture(scope="module")
def from_the_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `sentiment`, by `accelerate launch`, then `retrieval` and `nli` in another process that sees only this Hub."""
    folder = tmp_path_factory.mktemp("from_the_hub")
    rows = [(text, 1) for text in GOOD] + [(text, 0) for text in BAD]
    pairs = [(f"{text} {i}", f"{text}, said {i}") for i in range(10) for text in GOOD + BAD]
    inferences = [(GOOD[i % 5], BAD[(i + label) % 5], label) for i in range(20) for label in range(3)]
    shared = ["--max_steps", "2", "--per_device_train_batch_size", "8"]
    sentiment, retrieval = str(folder / "sentiment"), str(folder / "retrieval")
    launched = ["full", "--config_overrides", TINY, "--output_dir", sentiment, *shared]
    more = ["full", "--model", sentiment, "--eval_size", "40", "--output_dir", retrieval, *shared]
    nli = ["--data", "sentence-transformers/all-nli", "--data_config", "pair-class", "--eval_split", "dev"]
    nli += ["--text_columns", "premise", "hypothesis", "--config_overrides", TINY, "--output_dir", str(folder / "nli")]
    commands = [["train", "retrieval", *more], ["train", "sentiment", *nli, *shared]]
    code = f"from tinybert_hf.cli import main\nfor command in {commands!r}:\n    main(command)"
    accelerate = Path(sys.executable).with_name("accelerate")
    with LoopbackHub() as hub:
        hub.add_repo("dataset", "stanfordnlp/sst2", hub_datasets.sst2(rows * 4, rows))
        hub.add_repo("dataset", "sentence-transformers/natural-questions", hub_datasets.natural_questions(pairs))
        hub.add_repo("dataset", "sentence-transformers/all-nli", hub_datasets.all_nli(inferences))
        env = hub.env(folder) | {"PATH": os.environ["PATH"]}
        for process in ([accelerate, "launch", "train_sentiment.py", *launched], [sys.executable, "-c", code]):
            run(process, env, ROOT)
        assert hub.unexpected == []
    return folder


@pytest.mark.slow
def test_both_stages_train_on_the_hubs_data_sets(from_the_hub: Path) -> None:
    one = json.loads((from_the_hub / "sentiment" / "sentiment_summary.json").read_text())
    two = json.loads((from_the_hub / "retrieval" / "retrieval_summary.json").read_text())
    assert one["data"]["labels"] == ["negative", "positive"]
    assert (one["data"]["train_rows"], one["data"]["eval_rows"]) == (40, 10)
    assert (two["data"]["train_rows"], two["data"]["eval_rows"]) == (60, 40)


@pytest.mark.slow
def test_natural_language_inference_pairs_train_too(from_the_hub: Path) -> None:
    out = from_the_hub / "nli"
    summary = json.loads((out / "sentiment_summary.json").read_text())
    assert summary["data"]["labels"] == ["entailment", "neutral", "contradiction"]
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_labels == 3
    assert {*json.loads((out / "examples.json").read_text())[0]} == {"text", "text_pair"}  # no label
