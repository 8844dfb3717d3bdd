"""Recipes and flags."""

from pathlib import Path

import pytest
from training_run import ROOT

from tinybert_hf.arguments import TrainingArguments, parse_arguments
from train_retrieval import RetrievalArguments
from train_sentiment import SentimentArguments


def parse(*argv: str) -> RetrievalArguments:
    return parse_arguments(RetrievalArguments, "", list(argv))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 5e-4\nseed: 7\nnegative_columns: [a, b]\nconfig_overrides: {hidden_size: 8, pooling: mean}\n"
    )
    return path


def test_a_recipe_sets_typed_values(recipe: Path) -> None:
    arguments = parse(str(recipe))
    assert (arguments.learning_rate, arguments.seed) == (5e-4, 7)  # YAML reads 5e-4 as a string
    assert arguments.negative_columns == ["a", "b"]
    assert arguments.config_overrides == "hidden_size=8,pooling=mean"


def test_a_flag_wins_over_the_recipe(recipe: Path) -> None:
    arguments = parse(str(recipe), "--seed", "1", "--negative_columns", "c")
    assert (arguments.seed, arguments.negative_columns, arguments.learning_rate) == (1, ["c"], 5e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "'learning_rat' is no training argument. Did you mean learning_rate?"),
        ("seed:", "seed has no value"),
        ("- seed", "must hold 'name: value' lines, got list"),
        ("seed: [", "is no valid YAML"),
        ("seed: many", "invalid int value: 'many'"),
        ("max_grad_norm: 0", "--max_grad_norm must be above 0, got 0.0"),
        ("{model: m, tokenizer_data: [a.csv]}", "--model m brings its own. Leave one of them out"),
    ],
)
def test_a_wrong_recipe_is_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        parse(str(tmp_path / "recipe.yaml"))
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_flag_and_a_missing_recipe_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in ((["--sede", "1"], "--sede"), (["nowhere.yaml"], "nowhere.yaml")):
        with pytest.raises(SystemExit):
            parse(*argv)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("stage", [SentimentArguments, RetrievalArguments])
def test_the_full_recipe_is_the_defaults(stage: type[TrainingArguments]) -> None:
    name = stage.__name__.removesuffix("Arguments").lower()
    arguments = parse_arguments(stage, "", [str(ROOT / "recipes" / f"full_{name}.yaml")])
    defaults = stage()
    assert {k: v for k, v in vars(arguments).items() if k not in ("model", "tokenizer_data")} == {
        k: v for k, v in vars(defaults).items() if k not in ("model", "tokenizer_data")
    }


@pytest.mark.parametrize("stage", [SentimentArguments, RetrievalArguments])
def test_both_scripts_know_the_shared_flags(
    stage: type[TrainingArguments], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(stage, "Stage.", ["--help"])
    help_ = capsys.readouterr().out
    for flag in ("--model", "--data", "--output_dir", "--max_steps", "--seed", "--resume_from_checkpoint"):
        assert f"{flag} " in help_
    assert "(default: None)" not in help_


def test_a_single_file_is_never_measured_on_the_rows_it_trains_on(recipe: Path) -> None:
    file, folder = str(recipe), str(recipe.parent)
    for stage in (SentimentArguments, RetrievalArguments):
        assert stage(data=file, eval_split="validation").evaluation_source is None
        assert stage(data=folder, eval_split="validation").evaluation_source == (folder, "validation")
        assert stage(data=folder, eval_split="none").evaluation_source is None
        assert stage(data=file, eval_data="other.csv", eval_split="none").evaluation_source == (
            "other.csv",
            "train",
        )
    assert SentimentArguments().evaluation_source == ("stanfordnlp/sst2", "validation")
    assert RetrievalArguments().evaluation_source is None
