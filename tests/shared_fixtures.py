"""A tiny tokenizer and model, saved as the package saves them, and a loopback Hub."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import TEXTS
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from loopback_hub import LoopbackHub
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel
from tinybert_hf.tokenization import save_tokenizer, train_tokenizer

logging.disable_progress_bar()
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime would report to its makers
constants.ENDPOINT = "http://127.0.0.1:9"  # no stranger is asked by accident; a LoopbackHub names itself
constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # without a launcher: the same numbers on every machine


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocab_size=300, model_max_length=32)


@pytest.fixture
def config(tokenizer: PreTrainedTokenizerBase) -> TinyBertConfig:
    """As the original project: a table of positions to save and load, and the first token to pick."""
    return TinyBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        residual_initializer_range=0.1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        position_embedding_type="sinusoidal",
        pooling="cls",
    )


@pytest.fixture
def model(config: TinyBertConfig) -> TinyBertModel:
    torch.manual_seed(0)
    return TinyBertModel(config).eval()


@pytest.fixture
def model_folder(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture
def classifier_folder(config: TinyBertConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A two-class model, as stage one leaves it."""
    torch.manual_seed(0)
    config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    folder = tmp_path / "classifier"
    TinyBertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    forget_accelerator()


def forget_accelerator() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def bert(tokenizer: PreTrainedTokenizerBase) -> BertModel:
    """Another project's encoder, with random weights, those of the norms too, so that a forgotten one shows."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=3,
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def bert_folder(bert: BertModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    bert.save_pretrained(tmp_path / "bert")
    save_tokenizer(tokenizer, tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub for one test, which must not have been asked for anything it does not know."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the environment variable is read at import
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # a client made earlier may know a proxy
    with LoopbackHub() as hub:
        yield hub
        close_session()
        assert hub.unexpected == []
