"""The evaluate command prints a table, and writes what the model card reads.

python -m pytest tests/cli/test_evaluate_command.py -q
"""

import json
from pathlib import Path

import pytest
from command_line import tinybert
from retrieval_setup import write_beir

from tinybert_hf.evaluation import result_table


@pytest.mark.slow
def test_the_command_prints_a_table_and_the_arguments_of_the_result_repeat_it(
    model_folder: Path, tmp_path: Path
) -> None:
    beir = write_beir(tmp_path / "beir")
    out = model_folder / "new" / "evaluation_beir.json"
    flags = ["--model", model_folder, "--data", beir, "--truncate_dims", "8", "16", "--output_file", out]
    done = tinybert("evaluate", *flags)
    assert done.status == 0, done.err
    result = json.loads(out.read_text())
    assert done.out == result_table(result) + "\n"
    assert [name for name in result["results"] if "dimensions" in name] == [
        "model, 8 dimensions",
        "model, 16 dimensions",
    ]
    assert out.read_text().endswith("}\n")

    flags = []
    for name, value in result["arguments"].items():
        flags += [f"--{name}", *(value if isinstance(value, list) else [value])]
    again = tinybert("evaluate", *map(str, flags), "--output_file", tmp_path / "again.json")
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "again.json").read_text())["results"] == result["results"]


def test_data_that_is_not_there_is_a_message(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "beir").mkdir()
    done = tinybert("evaluate", "--model", model_folder, "--data", tmp_path / "beir")
    assert (done.status, done.out) == (1, "")
    assert done.err == f"error: {tmp_path / 'beir'} is no BEIR folder: corpus.jsonl is missing.\n"
