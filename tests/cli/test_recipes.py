"""Recipes: named, listed, checked by the parser of the flags, which win over them.

python -m pytest tests/cli/test_recipes.py -q
"""

from pathlib import Path
from typing import Any

import pytest
from command_line import tinybert

from tinybert_hf import training
from tinybert_hf.cli.recipes import list_recipes
from tinybert_hf.training.arguments import RetrievalArguments, SentimentArguments, TrainingArguments

ARGUMENTS = {"sentiment": SentimentArguments, "retrieval": RetrievalArguments}


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainingArguments]:
    """What the commands would have trained with."""
    arguments: list[Any] = []
    for stage in ARGUMENTS:
        monkeypatch.setattr(training, f"train_{stage}", arguments.append)
    return arguments


def parse(*words: str, stage: str = "retrieval") -> Any:
    """The arguments of a command that is right."""
    trained: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, f"train_{stage}", trained.append)
        done = tinybert("train", stage, *words)
    assert done == (0, "", "")
    return trained[0]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 5e-4\nseed: 7\nnegative_columns: [a, b]\nconfig_overrides: {hidden_size: 8, pooling: mean}\n"
    )
    return str(path)


def test_a_recipe_sets_typed_values(recipe: str) -> None:
    arguments = parse(recipe)
    assert (arguments.learning_rate, arguments.seed) == (5e-4, 7)  # YAML reads 5e-4 as a string
    assert arguments.negative_columns == ["a", "b"]
    assert arguments.config_overrides == "hidden_size=8,pooling=mean"


def test_a_flag_wins_over_the_recipe(recipe: str) -> None:
    arguments = parse(recipe, "--seed", "1", "--negative_columns", "c")
    assert (arguments.seed, arguments.negative_columns, arguments.learning_rate) == (1, ["c"], 5e-4)


def test_a_recipe_may_stand_after_flags(recipe: str) -> None:
    assert parse("--seed", "1", recipe) == parse(recipe, "--seed", "1")
    assert parse("--seed", "1", "minilm", "--max_steps", "5") == parse("minilm", "--seed", "1", "--max_steps", "5")


def test_a_single_value_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text("text_columns: review\n")
    assert parse(str(tmp_path / "recipe.yml"), stage="sentiment").text_columns == ["review"]


def test_the_last_of_two_flags_counts() -> None:
    assert parse("--seed", "1", "--seed", "2").seed == 2
    arguments = parse("--matryoshka_dims", "8", "16", "--seed", "1", "--matryoshka_dims", "4", "2")
    assert arguments.matryoshka_dims == [4, 2]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("learning_rat: 1", 2, 'Unknown option: "[learning_rat]" from {path}. Did you mean --learning_rate?'),
        ("seed:", 2, 'Invalid value for [seed] from {path}: unable to convert "null" into int.'),
        ("- seed", 2, 'Configuration in "{path}" must be a mapping, but got list.'),
        ("", 2, 'Configuration in "{path}" must be a mapping, but got NoneType.'),
        ("seed: [", 1, "is no valid YAML"),
        ("seed: [1, 2]", 2, 'Invalid value for [seed] from {path}: unable to convert "[1, 2]" into int.'),
        ("RECIPE: x", 2, 'Unknown option: "[RECIPE]" from {path}.'),
        ("seed: many", 2, 'Invalid value for [seed] from {path}: unable to convert "many" into int.'),
        ("lr_scheduler_type: lineer", 2, 'Did you mean "linear"?'),
        ("max_grad_norm: 0", 1, "--max_grad_norm must be above 0, got 0.0"),
        ("{model: m, tokenizer_data: [a.csv]}", 1, "--model m brings its own. Leave one of them out"),
    ],
)
def test_a_wrong_recipe_is_named(
    text: str, status: int, message: str, tmp_path: Path, trained: list[TrainingArguments]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    done = tinybert("train", "retrieval", path)
    assert (done.status, done.out, trained) == (status, "", [])
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert message.format(path=path) in done.err
    if "--" not in message and 'Did you mean "' not in message:
        assert str(path) in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "The recipe nowhere.yaml does not exist (looked in "),
        (
            ["minilmm"],
            "There is no recipe 'minilmm'. Did you mean minilm? Those for retrieval are full, minilm, small, words",
        ),
        (["pairs.csv"], "There is no recipe 'pairs.csv'. Those for retrieval are"),
        (["minilm", "small"], "Nothing is expected at 'small'."),
    ],
)
def test_a_recipe_that_is_not_there_is_a_message(
    words: list[str], message: str, trained: list[TrainingArguments]
) -> None:
    done = tinybert("train", "retrieval", *words)
    assert (done.status, trained) == (2 if len(words) > 1 else 1, [])
    assert done.err.startswith(f"error: {message}")


def test_the_list_has_a_command_and_a_sentence_for_each_recipe() -> None:
    lines = tinybert("recipes").out.splitlines()
    paths = [path for stage in ARGUMENTS for path in list_recipes(stage)]
    assert len(lines) == len(paths) == 6
    for line, path in zip(lines, paths, strict=True):
        command, sentence = line.split("  ", 1)
        assert command == f"tinybert train {path.parent.name} {path.stem}"
        assert path.read_text().startswith(f"# {sentence.strip()}\n")
        assert sentence.endswith(".")


@pytest.mark.parametrize("path", [path for stage in ARGUMENTS for path in list_recipes(stage)], ids=str)
def test_every_recipe_is_right_and_every_value_arrives(path: Path) -> None:
    import yaml

    arguments = vars(parse(path.stem, stage=path.parent.name))
    for name, value in yaml.safe_load(path.read_text()).items():
        if name == "config_overrides":
            value = ",".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(arguments[name], list):
            value = value if isinstance(value, list) else [value]
        assert arguments[name] == (float(value) if isinstance(arguments[name], float) else value), name


def test_a_recipe_is_printed_as_a_file_to_start_from(tmp_path: Path) -> None:
    done = tinybert("recipes", "minilm")
    (tmp_path / "mine.yaml").write_text(done.out)
    assert parse(str(tmp_path / "mine.yaml")) == parse("minilm")
    assert tinybert("recipes", "full").out.count("learning_rate") == 2, "both stages have one"


def test_a_recipe_that_is_not_there_cannot_be_printed() -> None:
    done = tinybert("recipes", "nonesuch")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: There is no recipe nonesuch.")


@pytest.mark.parametrize("stage", ARGUMENTS)
def test_the_full_recipe_is_the_defaults(stage: str) -> None:
    arguments, defaults = parse("full", stage=stage), ARGUMENTS[stage]()
    differing = {name for name, value in vars(arguments).items() if value != vars(defaults)[name]}
    assert differing == {"tokenizer_data" if stage == "sentiment" else "model"}


@pytest.mark.parametrize("stage", ARGUMENTS)
def test_without_a_flag_the_defaults_count(stage: str) -> None:
    assert parse(stage=stage) == ARGUMENTS[stage]()
