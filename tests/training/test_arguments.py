"""The settings of a training: what is measured on, and values that do not fit.

python -m pytest tests/training/test_arguments.py -q
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinybert_hf.errors import InputError
from tinybert_hf.training.arguments import RetrievalArguments, SentimentArguments, TrainingArguments


def test_a_single_file_is_never_measured_on_the_rows_it_trains_on(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").touch()
    file, folder = str(tmp_path / "pairs.csv"), str(tmp_path)
    for stage in (SentimentArguments, RetrievalArguments):
        assert stage(data=file, eval_split="validation").evaluation_source is None
        assert stage(data=folder, eval_split="validation").evaluation_source == (folder, "validation")
        assert stage(data=folder, eval_split="none").evaluation_source is None
        assert stage(data=file, eval_data="other.csv", eval_split="none").evaluation_source == ("other.csv", "train")
    assert SentimentArguments().evaluation_source == ("stanfordnlp/sst2", "validation")
    assert RetrievalArguments().evaluation_source is None


@pytest.mark.parametrize("stage", [SentimentArguments, RetrievalArguments])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_grad_norm": 0.0}, "--max_grad_norm must be above 0, got 0.0"),
        ({"save_steps": -1}, "--save_steps must be above 0, got -1"),
        ({"warmup_ratio": 1.5}, "--warmup_ratio must be between 0 and 1, got 1.5"),
        ({"model": "m", "tokenizer_data": ["a.csv"]}, "--model m brings its own. Leave one of them out"),
    ],
)
def test_values_that_do_not_fit_are_named(stage: type[TrainingArguments], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stage(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"documents": "notes.jsonl", "mined_negatives": 1}, "--documents makes new queries in every epoch"),
        ({"documents": "notes.jsonl", "negative_columns": ["n"]}, "--documents makes new queries in every epoch"),
        ({"teacher": "t", "model": "outputs/model"}, "--teacher t gives a new model its embeddings of the tokens"),
        ({"temperature": 0.0}, "--temperature must be above 0, got 0.0"),
        ({"mined_negatives": -1}, "--mined_negatives must not be negative, got -1"),
        ({"activation_budget_tokens": -1}, "--activation_budget_tokens must not be negative, got -1"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience must be above 0, got 0"),
        ({"lr_scheduler_type": "steps"}, "--lr_scheduler_type must be one of linear, cosine, .*, got 'steps'"),
    ],
)
def test_what_does_not_fit_stage_two_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RetrievalArguments(**values)


def test_a_text_has_one_column_or_two() -> None:
    with pytest.raises(InputError, match="--text_columns takes one column or two, got a b c"):
        SentimentArguments(text_columns=["a", "b", "c"])
    with pytest.raises(InputError, match="--text_columns takes one column or two, got"):
        SentimentArguments(text_columns=[])


def test_settings_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        RetrievalArguments("pairs.csv")  # type: ignore[misc]


def test_paths_become_texts_for_the_summary(tmp_path: Path) -> None:
    arguments = RetrievalArguments(data=tmp_path, eval_split="validation", model=tmp_path, output_dir=tmp_path)
    assert (arguments.data, arguments.model, arguments.output_dir) == (str(tmp_path),) * 3
    assert arguments.evaluation_source == (str(tmp_path), "validation")


def test_rows_in_memory_have_no_split(tmp_path: Path) -> None:
    rows = [{"query": "a", "answer": "b"}]
    assert SentimentArguments(data=rows).evaluation_source is None
    assert RetrievalArguments(data=rows, eval_split="test").evaluation_source is None
    assert RetrievalArguments(data="a/b", eval_data=rows).evaluation_source == (rows, "train")


def test_the_settings_are_read_without_torch() -> None:
    code = "import sys, tinybert_hf.training.arguments; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_one_data_set_is_itself_and_several_are_a_list() -> None:
    assert RetrievalArguments(data=["faq.csv"]).data == "faq.csv"
    assert RetrievalArguments(data=["a.csv", "b.csv"]).data == ["a.csv", "b.csv"]
    assert RetrievalArguments(data=[{"query": "a", "answer": "b"}]).data == [{"query": "a", "answer": "b"}]
