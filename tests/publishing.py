"""What the tests of publishing share: trained folders with their summaries, the command, and a Hub to push to."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from loopback_hub import WRITE_TOKEN, LoopbackHub
from transformers import PreTrainedTokenizerBase

import tinybert_hf.publish.push
from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf.cli import main
from tinybert_hf.tokenization import save_tokenizer

ROOT = Path(__file__).parents[1]
REPO = "tester/tiny"
SPACE = "tester/demo"

SENTENCE_TRANSFORMERS_FILES = {
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
}


def summary(stage: str, data: dict[str, Any], results: dict[str, float], **arguments: Any) -> dict[str, Any]:
    """A run summary as training.Trainer writes it, with numbers that no run would give twice."""
    return {
        "stage": stage,
        "data": {"train_rows": 4321, "eval_rows": 765, "texts_per_row": 2} | data,
        "arguments": {
            "data": data["data"],
            "data_config": None,
            "eval_data": None,
            "eval_split": None,
            "model": None,
            "output_dir": f"outputs/{stage}",
            "learning_rate": 0.00071,
            "warmup_ratio": 0.13,
            "weight_decay": 0.017,
            "max_grad_norm": 1.9,
            "seed": 5,
        }
        | arguments,
        "parameters": 1,
        "steps": 1357,
        "epochs": 2.46,
        "rows_per_step": 97,
        "seconds": 4008.0,
        "best_step": 1234,
        "results": results,
        "history": [],
        "hardware": {
            "device": "cpu",
            "processor": "x86_64",
            "num_processes": 3,
            "threads_per_process": 11,
            "mixed_precision": "bf16",
        },
        "versions": {"python": "3.98.7", "torch": "2.87.6"},
    }


SENTIMENT = summary(
    "sentiment",
    {"data": "stanfordnlp/sst2", "labels": ["negative", "positive"]},
    {"accuracy": 0.8123, "f1_macro": 0.8045},
    eval_split="validation",
    model="someone/base",
    text_columns=["sentence"],
)
RETRIEVAL = summary(
    "retrieval",
    {"data": "pairs.jsonl"},
    {"loss": 1.0203, "nDCG@10": 0.5678, "RR@10": 0.5432},
    eval_data="held_out.jsonl",
    model="outputs/sentiment",
    temperature=0.057,
    teacher="someone/teacher",
    negative_columns=["near", "far"],
)
EVALUATION = {
    "arguments": {"model": "outputs/x", "data": "beir/test"},
    "data": "beir/test",
    "split": "test",
    "queries": 1011,
    "documents": 20022,
    "encode_seconds": 3.0,
    "results": {"model": {"nDCG@10": 0.4567, "R@100": 0.9012}, "BM25": {"nDCG@10": 0.3456, "R@100": 0.7891}},
}


@pytest.fixture(params=["mean", "cls"])
def encoder_like_bert(request: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """An encoder with BERT's arithmetic, and random weights in every tensor."""
    return save_model(TinyBertModel(config_like_bert(tokenizer, request.param)), tokenizer, tmp_path / "trained")


def config_like_bert(tokenizer: PreTrainedTokenizerBase, pooling: str) -> TinyBertConfig:
    return TinyBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="gelu",
        max_position_embeddings=32,
        position_embedding_type="learned",
        norm_position="post",
        pooling=pooling,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture
def encoder(model_folder: Path) -> Path:
    """The output of stage two, with what training leaves beside the model."""
    (model_folder / "checkpoint-10").mkdir()
    for leftover in ("checkpoint-10/optimizer.bin", "checkpoint-10/model.safetensors", ".lock", "notes.txt"):
        (model_folder / leftover).write_bytes(b"leftover")
    (model_folder / "runs").mkdir()
    for stage in (SENTIMENT, RETRIEVAL):
        (model_folder / f"{stage['stage']}_summary.json").write_text(json.dumps(stage))
    (model_folder / "evaluation_beir.json").write_text(json.dumps(EVALUATION))
    return model_folder


@pytest.fixture
def classifier(classifier_folder: Path) -> Path:
    """The output of stage one."""
    (classifier_folder / "sentiment_summary.json").write_text(json.dumps(SENTIMENT))
    return classifier_folder


Command = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Command:
    """`tinybert publish ...` in this process: what it printed and reported, or the message that it left with."""

    def run(*argv: str | Path) -> str:
        caplog.clear()
        capsys.readouterr()
        try:
            main(["publish", *map(str, argv)])
        except SystemExit as left:
            if left.code:
                return capsys.readouterr().err.strip().splitlines()[-1]
        return "\n".join([capsys.readouterr().out, *caplog.messages])

    return run


@pytest.fixture
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    """The Hub of this process, logged in; a push is not verified."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setattr(tinybert_hf.publish.push, "load_back", lambda *_: None)
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)
