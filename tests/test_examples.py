"""The notebook runs from top to bottom with a tiny model in place of the one that it names; a smaller model learns."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import TEXTS
from loopback_hub import LoopbackHub
from nbclient import NotebookClient
from publishing import config_like_bert, save_model
from training_run import ROOT
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel, load_search_pipeline
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.tokenization import save_tokenizer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def add_tiny_minilm(hub: LoopbackHub, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A BERT of random weights under the name of all-MiniLM-L6-v2."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    hub.add_repo("model", MINILM, {path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.mark.slow
def test_the_notebook_trains_searches_and_publishes(
    hub: LoopbackHub, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny_minilm(hub, tokenizer, tmp_path / "minilm")
    for name, value in hub.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "data").symlink_to(ROOT / "data")
    path = tmp_path / "examples" / "train_on_your_own_pairs.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    folder = path.parent / "outputs" / "notebook-published"
    assert {"model.safetensors", "README.md", "modeling_tinybert.py"} <= {p.name for p in folder.iterdir()}
    table = notebook.cells[5].outputs[0]["data"]["text/plain"]
    assert {"before", "after", "BM25", "nDCG@10"} <= set(table.split())


@pytest.mark.slow
def test_a_smaller_model_learns_the_embeddings_of_a_trained_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = config_like_bert(tokenizer, "mean")
    config.num_hidden_layers = 4
    trained = save_model(TinyBertModel(config), tokenizer, tmp_path / "trained")
    teacher = build_folder(trained, tmp_path / "published", "published")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    command = [sys.executable, ROOT / "examples" / "train_a_smaller_model.py", teacher, tmp_path / "student"]
    options = ["--layers", "2", "--learning_rate", "1e-3", "--batch_size", "4", "--epochs", "40", "--texts"]
    command += [*options, tmp_path / "texts.txt"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd=tmp_path)
    student, whole = load_search_pipeline(tmp_path / "student"), load_search_pipeline(teacher)
    assert student.model.config.num_hidden_layers == 2
    expected = whole.encode(TEXTS)
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[3]])
    untrained = whole.encode(TEXTS)
    before, after = ((rows * expected).sum(dim=-1).mean() for rows in (untrained, student.encode(TEXTS)))
    assert before < 0.9 < after
