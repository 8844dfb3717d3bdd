"""What a run tells its user."""

import shlex
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tinybert_hf.cli import app
from tinybert_hf.training.report import describe_machine, next_commands, plan


def test_the_plan_counts_rows_and_passes() -> None:
    facts = {"train_rows": 1_234, "eval_rows": 50}
    assert plan("documents", facts, max_steps=1_000, rows_per_step=8, epochs=1.0) == (
        "Training on 1,234 documents: 1,000 steps of 8 documents, 1 pass over them. Measured on 50 other documents."
    )
    facts_of_many = {"train_rows": 18_000, "eval_rows": 1_000}
    assert plan("pairs", facts_of_many, 140, 256, 2.0) == (
        "Training on 18,000 pairs: 140 steps of 256 pairs, 2 passes over them. Measured on 1,000 other pairs."
    )
    assert "0.25 passes over them" in plan("pairs", facts, max_steps=10, rows_per_step=8, epochs=0.25)


@pytest.mark.parametrize(
    ("stage", "commands"),
    [
        ("retrieval", ["tinybert search", "tinybert publish", "tinybert index build"]),
        ("sentiment", ["tinybert train retrieval", "tinybert publish"]),
    ],
)
def test_the_next_commands_name_the_folder_and_know_their_flags(stage: str, commands: list[str]) -> None:
    lines = next_commands(stage, Path("outputs/mine")).splitlines()
    assert len({line.index("tinybert") for line in lines}) == 1, "in one column"
    for line, command in zip(lines, commands, strict=True):
        purpose, _, said = line.partition(":")
        assert purpose and said.strip().startswith(f"{command} ") and "--model outputs/mine" in said
        app.parse_args(shlex.split(said)[1:], exit_on_error=False, print_error=False)
    assert len(lines) == len(commands)


def test_hardware_and_versions_are_those_of_this_process(accelerator: Accelerator) -> None:
    hardware = describe_machine(accelerator)["hardware"]
    assert (hardware["device"], hardware["num_processes"]) == ("cpu", 1)
    assert hardware["threads_per_process"] == torch.get_num_threads()
    versions = describe_machine(accelerator)["versions"]
    assert versions["torch"].startswith(torch.__version__.split("+")[0])
    assert set(versions) == {"python", "torch", "transformers", "tokenizers", "datasets", "accelerate"}
