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
        assert stage(data=file, eval_data="other.csv", eval_split="none").evaluation_source == (
            "other.csv",
            "train",
        )
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
def test_values_that_do_not_fit_are_named(
    stage: type[TrainingArguments], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        stage(**values)


def test_the_settings_are_read_without_torch() -> None:
    code = "import sys, tinybert_hf.training.arguments; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
