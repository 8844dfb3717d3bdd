"""What the README promises: its Python blocks run, and its commands name what exists."""

import re
import shutil
from pathlib import Path

import fresh_process
from training_run import ROOT

from tinybert_hf.hub import build_folder
from train_retrieval import RetrievalArguments
from train_sentiment import SentimentArguments

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_blocks_run_without_the_package(
    model_folder: Path, classifier_folder: Path, tmp_path: Path
) -> None:
    build_folder(model_folder, tmp_path / "outputs" / "published", "outputs/published")
    shutil.copytree(classifier_folder, tmp_path / "outputs" / "small-sentiment")
    assert len(blocks("python")) == 4
    printed = fresh_process.run_python("\n".join(blocks("python")), tmp_path)
    assert "torch.Size([2, 32])" in printed
    assert "'label':" in printed


def test_make_targets_and_files_named_in_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = "\n".join(blocks("bash"))
    named = re.findall(r"make ([a-z]+)", commands)
    assert set(named) == {"quickstart", "test"} <= set(targets)
    for path in re.findall(r"recipes/\w+\.yaml|\w+\.py\b", commands):
        assert (ROOT / path).is_file(), path


def test_training_flags_named_in_the_readme_exist() -> None:
    known = set(vars(SentimentArguments())) | set(vars(RetrievalArguments()))
    lines = [line for line in README.splitlines() if "train_" in line and "accelerate launch" in line]
    flags = {flag for line in lines for flag in re.findall(r"--(\w+)", line.split("train_", 1)[1])}
    assert flags >= {"data", "query_column", "answer_column", "output_dir"}
    assert flags <= known
