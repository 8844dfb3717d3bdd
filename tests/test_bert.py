"""An encoder taken over from BERT computes what transformers' `BertModel` computes."""

import json
import shutil
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import TEXTS
from loopback_hub import LoopbackHub
from test_hub import contents
from training_run import train, write_pairs
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from tinybert_hf import TinyBertForSequenceClassification, TinyBertModel
from tinybert_hf.tokenization import save_tokenizer
from tinybert_hf.training import load_encoder


@pytest.fixture
def bert(tokenizer: PreTrainedTokenizerBase) -> BertModel:
    """Random weights, those of the norms too, so that a forgotten one shows."""
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


def test_hidden_states_are_those_of_bert(bert: BertModel, bert_folder: Path) -> None:
    taken = load_encoder(str(bert_folder))
    model = taken.load(TinyBertModel).eval()
    batch = taken.tokenizer(TEXTS[:2], ["a short one", TEXTS[3]], padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any() and (batch["token_type_ids"] == 1).any()
    theirs = bert(**batch, output_hidden_states=True).hidden_states
    ours = model(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    for layer, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(mine[real], other[real], msg=f"after layer {layer}")


def test_fewer_layers_are_evenly_spaced_and_keep_the_first_positions(
    bert: BertModel, bert_folder: Path
) -> None:
    taken = load_encoder(str(bert_folder), "num_hidden_layers=2,max_position_embeddings=12")
    model = taken.load(TinyBertModel).eval()
    bert.encoder.layer = torch.nn.ModuleList([bert.encoder.layer[0], bert.encoder.layer[3]])
    batch = taken.tokenizer([*TEXTS, " ".join(TEXTS)], truncation=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 12
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).last_hidden_state[real], bert(**batch).last_hidden_state[real])


def test_a_classifier_starts_from_it_too(bert_folder: Path) -> None:
    taken = load_encoder(str(bert_folder))
    assert taken.weights
    classifier = taken.load(TinyBertForSequenceClassification)
    assert torch.equal(classifier.tinybert.layers[3].mlp.up.weight, taken.weights["layers.3.mlp.up.weight"])


def test_weights_that_do_not_fit_the_configuration_are_refused(model_folder: Path) -> None:
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 65}))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load_encoder(str(model_folder)).load(TinyBertModel)


def describe(folder: Path, pooling: dict[str, object], *more: str) -> None:
    """What makes a folder a SentenceTransformer: its modules, how it pools and where it cuts."""
    names = ["Transformer", "Pooling", *more]
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{i}_{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')


@pytest.mark.parametrize(
    "settings, pooling",
    [
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_what_a_sentence_transformer_says_is_kept(
    bert_folder: Path, settings: dict[str, object], pooling: str
) -> None:
    describe(bert_folder, settings, "Normalize")
    taken = load_encoder(str(bert_folder))
    assert (taken.config.pooling, taken.config.max_position_embeddings) == (pooling, 20)
    assert taken.tokenizer.model_max_length == 20


def test_another_pooling_and_further_layers_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "other")
    describe(bert_folder, {"pooling_mode": "max"})
    with pytest.raises(ValueError, match=r"pools by max; only the first token \(cls\) or the mean"):
        load_encoder(str(bert_folder))
    describe(tmp_path / "other", {"pooling_mode": "mean"}, "Dense")
    with pytest.raises(ValueError, match=r"further layers after its BERT \(Dense\)"):
        load_encoder(str(tmp_path / "other"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("hidden_size=16", "fix hidden_size. Only attention_probs_dropout_prob, "),
        ("num_hidden_layers=5", "num_hidden_layers must be from 1 to 4"),
        ("num_hidden_layers=0", "num_hidden_layers must be from 1 to 4"),
        ("max_position_embeddings=41", "max_position_embeddings must be from 3 to 40"),
        ("pooling=max", "pooling='max' is unknown"),
        ("layers=2", "key layers isn't in the original config"),
    ],
)
def test_what_the_weights_do_not_allow_is_refused(bert_folder: Path, overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--config_overrides {overrides}: .*{message}"):
        load_encoder(str(bert_folder), overrides)


def test_training_moves_all_of_it_and_can_be_resumed(bert_folder: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    flags = ["--model", str(bert_folder), "--config_overrides", "num_hidden_layers=2,hidden_dropout_prob=0"]
    flags += ["--data", str(pairs), "--eval_size", "32", "--max_steps", "4", "--save_steps", "2"]
    flags += ["--per_device_train_batch_size", "8", "--learning_rate", "0.01", "--report_to", "none"]
    flags += ["--output_dir", str(tmp_path / "out")]
    train("train_retrieval", flags, tmp_path / "log")
    before = load_encoder(str(bert_folder), "num_hidden_layers=2").weights
    trained = TinyBertModel.from_pretrained(tmp_path / "out")
    assert before and trained.config.norm_position == "post"
    for name, tensor in trained.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    train("train_retrieval", [*flags, "--resume_from_checkpoint", "auto"], tmp_path / "log2")


@pytest.mark.parametrize(
    "folder, flags, message",
    [
        ("model", ["--config_overrides", "num_hidden_layers=1"], "is a tinybert model, which brings its own"),
        ("bert", ["--warm_start_epochs", "1"], "for layers that start as the identity, and those of --model"),
    ],
)
def test_what_a_trained_encoder_does_not_allow_is_refused(
    model_folder: Path, bert_folder: Path, tmp_path: Path, folder: str, flags: list[str], message: str
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    flags = ["--data", str(pairs), "--eval_size", "32", "--output_dir", str(tmp_path / "out"), *flags]
    with pytest.raises(AssertionError, match=message):
        train("train_retrieval", [*flags, "--model", str(tmp_path / folder)], tmp_path / "log")


@pytest.mark.parametrize("pooling", ["cls", None])
def test_one_on_the_hub_is_taken_over_with_or_without_pooling_of_its_own(
    bert_folder: Path, hub: LoopbackHub, tmp_path: Path, pooling: str | None
) -> None:
    if pooling:
        describe(bert_folder, {"pooling_mode": pooling})
    hub.add_repo("model", "tester/bert", contents(bert_folder))
    code = """
        from tinybert_hf.training import load_encoder
        start = load_encoder("tester/bert", "num_hidden_layers=2")
        print(start.config.pooling, len(start.weights))
    """
    printed = fresh_process.run_python(code, tmp_path, hub.env(tmp_path), without_package=False)
    assert printed.split() == [pooling or "mean", "29"]
