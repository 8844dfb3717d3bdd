"""What the README promises: its Python blocks run, and its commands name what exists. See test_docs.py for all documents."""

import re
from pathlib import Path

import fresh_process
import pytest
from loopback_hub import LoopbackHub
from test_examples import add_tiny_minilm
from training_run import ROOT
from transformers import PreTrainedTokenizerBase

from tinybert_hf.publish.folder import build_folder

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_one_can_search_before_anything_is_trained(
    hub: LoopbackHub, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    add_tiny_minilm(hub, tokenizer, tmp_path / "minilm")
    printed = fresh_process.run_stranger(
        blocks("python")[0], tmp_path, hub.env(tmp_path / "home"), without_package=False
    )
    assert len(printed.splitlines()) == 3
    assert "git revert undoes a commit." in printed


@pytest.mark.slow
def test_a_published_folder_is_used_without_the_package(encoder_like_bert: Path, tmp_path: Path) -> None:
    build_folder(encoder_like_bert, tmp_path / "outputs" / "published", "outputs/published")
    assert len(blocks("python")) == 3
    printed = fresh_process.run_stranger("\n".join(blocks("python")[1:]), tmp_path)
    assert "'score':" in printed and "tensor([[" in printed


def test_make_targets_and_files_named_in_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = "\n".join(blocks("bash"))
    assert set(re.findall(r"make ([a-z-]+)", commands)) == {"install", "quickstart", "test"} <= set(targets)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
