"""Where training begins: another model, a checkpoint or random weights, and what is refused as a start."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS
from datasets import Dataset
from training_run import train, write_pairs
from transformers import AutoTokenizer, MPNetConfig, PreTrainedTokenizerBase

from tinybert_hf import RetrievalArguments, TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel
from tinybert_hf.convert_bert import Start, load_encoder, override_config
from tinybert_hf.errors import InputError, UnreadableError
from tinybert_hf.training.stage import load_start

# ---- A trained encoder ----


def test_overrides_that_a_model_has_already_are_no_contradiction(model_folder: Path) -> None:
    sizes = "max_position_embeddings=32,hidden_dropout_prob=0.1"
    assert load_encoder(str(model_folder), sizes).source == str(model_folder)
    with pytest.raises(InputError, match=r"brings its own configuration \(hidden_size=32, pooling=cls\)"):
        load_encoder(str(model_folder), sizes + ",hidden_size=64,pooling=mean")


def test_a_classifier_starts_from_it_too(bert_folder: Path) -> None:
    taken = load_encoder(str(bert_folder))
    assert taken.weights
    classifier = taken.load(TinyBertForSequenceClassification)
    assert torch.equal(classifier.tinybert.layers[3].mlp.up.weight, taken.weights["layers.3.mlp.up.weight"])


def test_weights_that_do_not_fit_the_configuration_are_refused(model_folder: Path) -> None:
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 65}))
    with pytest.raises(
        UnreadableError, match=r"its weights have another shape of layers\.0\.mlp\.down\.weight and 5 more"
    ):
        load_encoder(str(model_folder)).load(TinyBertModel)


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
    with pytest.raises(InputError, match=f"--config_overrides {overrides}: .*{message}"):
        load_encoder(str(bert_folder), overrides)


@pytest.mark.slow
def test_training_moves_all_of_it_and_can_be_resumed(bert_folder: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    flags = ["--model", str(bert_folder), "--config_overrides", "num_hidden_layers=2,hidden_dropout_prob=0"]
    flags += ["--data", str(pairs), "--eval_size", "32", "--max_steps", "4", "--save_steps", "2"]
    flags += ["--per_device_train_batch_size", "8", "--learning_rate", "0.01", "--report_to", "none"]
    flags += ["--output_dir", str(tmp_path / "out")]
    train("retrieval", flags, tmp_path / "log")
    before = load_encoder(str(bert_folder), "num_hidden_layers=2").weights
    trained = TinyBertModel.from_pretrained(tmp_path / "out")
    assert before and trained.config.norm_position == "post"
    for name, tensor in trained.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    train("retrieval", [*flags, "--resume_from_checkpoint", "auto"], tmp_path / "log2")


@pytest.mark.parametrize(
    "folder, flags, message",
    [
        ("model", ["--config_overrides", "num_hidden_layers=1"], "is a tinybert model, which brings its own"),
        ("bert", ["--config_overrides", "hidden_size=8"], "fix hidden_size"),
    ],
)
def test_what_a_trained_encoder_does_not_allow_is_refused(
    model_folder: Path, bert_folder: Path, tmp_path: Path, folder: str, flags: list[str], message: str
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    flags = ["--data", str(pairs), "--eval_size", "32", "--output_dir", str(tmp_path / "out"), *flags]
    with pytest.raises(AssertionError, match=message):
        train("retrieval", [*flags, "--model", str(tmp_path / folder)], tmp_path / "log")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=f"Could not load the model {tmp_path} from this folder: "):
        load_encoder(str(tmp_path))


def test_an_encoder_of_another_kind_is_named(tmp_path: Path) -> None:
    MPNetConfig().save_pretrained(tmp_path)
    works = "tinybert, bert, camembert, distilbert, roberta, xlm-roberta"
    with pytest.raises(InputError, match=f"Could not load the model .*: it is a mpnet model; what works: {works}"):
        load_encoder(str(tmp_path))


def test_random_weights_are_those_of_the_seed(config: TinyBertConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    start = Start(config, tokenizer)
    torch.manual_seed(0)
    first = start.load(TinyBertModel).state_dict()
    torch.manual_seed(0)
    second = start.load(TinyBertModel).state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


# ---- The configuration ----


def test_overrides_change_a_copy() -> None:
    config = TinyBertConfig()
    changed = override_config(config, "hidden_size=24,num_attention_heads=3,pooling=cls,hidden_dropout_prob=0")
    assert (changed.hidden_size, changed.num_attention_heads, changed.pooling) == (24, 3, "cls")
    assert changed.hidden_dropout_prob == 0
    assert (config.hidden_size, config.pooling) == (768, "mean")
    assert override_config(config, None).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("hidden_siz=8", "key hidden_siz isn't in the original config"),
        ("hidden_size=10", "hidden_size=10 is not a multiple of num_attention_heads=12"),
        ("hidden_size=many", "invalid literal for int"),
        ("hidden_size", "expected name=value,name=value"),
        ("pooling=cls,8", "expected name=value,name=value"),
    ],
)
def test_overrides_that_do_not_fit_are_named(overrides: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--config_overrides {overrides}: .*{message}"):
        override_config(TinyBertConfig(), overrides)


# ---- A new model ----


@pytest.mark.parametrize("own", [True, False])
def test_a_new_models_tokenizer_learns_from_the_data_or_from_what_is_named(
    accelerator: Accelerator, tmp_path: Path, own: bool
) -> None:
    write_pairs(tmp_path / "pairs.csv", 50, seed=0)
    arguments = RetrievalArguments(
        output_dir=str(tmp_path / "out"),
        config_overrides="vocab_size=300,max_position_embeddings=24",
        tokenizer_data=[str(tmp_path / "pairs.csv")] if own else None,
    )
    start = load_start(arguments, accelerator, None, Dataset.from_dict({"query": TEXTS, "answer": TEXTS[::-1]}))
    assert start.source is None and start.config.max_position_embeddings == 24
    assert start.config.vocab_size == len(start.tokenizer) < 300
    assert start.tokenizer.model_max_length == 24
    known = "network" if own else "compiler"  # a word of the one and not of the other
    assert start.tokenizer.tokenize(known) == [known]
    assert start.tokenizer.tokenize("network" if known == "compiler" else "compiler") != ["compiler"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.get_vocab() == start.tokenizer.get_vocab()


def test_a_checkpoint_wins_over_what_the_run_started_from(
    accelerator: Accelerator, model_folder: Path, tmp_path: Path
) -> None:
    arguments = RetrievalArguments(model="nowhere", config_overrides="hidden_size=7", output_dir=str(tmp_path))
    start = load_start(arguments, accelerator, model_folder, Dataset.from_dict({"query": TEXTS}))
    assert start.source == str(model_folder)
    assert start.config.hidden_size == 32
