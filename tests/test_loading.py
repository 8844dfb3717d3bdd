"""What is damaged, incomplete or a stranger's is refused, wherever a model is loaded."""

import json
import logging
import logging.handlers
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import tinybert
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertModel

from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel, load_search_pipeline
from tinybert_hf.convert_bert import load_encoder
from tinybert_hf.errors import UnreadableError
from tinybert_hf.loading import load_model, load_tokenizer
from tinybert_hf.publish.folder import load_pipeline
from tinybert_hf.tokenization import save_tokenizer

Damage = Callable[[Path], None]


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def settings(**entries: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return damage


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def one_more_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["another"] = 5_000
    path.write_text(json.dumps(content))


UP = "layers.0.mlp.up.weight"


@pytest.mark.parametrize(
    "load", [load_search_pipeline, load_pipeline, lambda path: load_encoder(path).load(TinyBertModel)]
)
@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "SafetensorError"),
        (weights(lambda tensors: tensors.pop(UP)), f"its weights lack {UP}"),
        (weights(lambda tensors: tensors.clear()), "its weights lack .* and .* more"),
        (weights(lambda tensors: tensors.update(more=torch.ones(1))), "its weights have, and the model has not, more"),
        (weights(lambda tensors: tensors.update({UP: torch.ones(3, 5)})), f"have another shape of {UP}"),
        (weights(lambda tensors: tensors[UP][0].fill_(float("nan"))), f"are not finite in {UP}"),
        (weights(lambda tensors: tensors[UP][0].fill_(float("-inf"))), f"are not finite in {UP}"),
        (one_more_token, "its tokenizer has the id 5000, and the model embeddings for"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"}'), "KeyError"),
        (settings(num_attention_heads=0), "num_attention_heads=0 must be a number from 1"),
        (settings(hidden_act="loud"), "hidden_act='loud' is unknown; choose one of "),
        (settings(hidden_act=["relu"]), "hidden_act=.* is unknown"),
        (settings(hidden_size="64"), "hidden_size='64' must be a number from 1 to"),
        (settings(num_hidden_layers=10**9), "num_hidden_layers=1000000000 must be a number from 0 to 1000"),
        (settings(layer_norm_eps=float("nan")), "layer_norm_eps=nan must be"),
        (settings(vocab_size=True), "vocab_size=True must be"),
    ],
)
def test_what_is_damaged_is_refused_by_every_loader(
    model_folder: Path, load: Callable[[Path], Any], damage: Damage, message: str
) -> None:
    load(model_folder)
    damage(model_folder)
    with pytest.raises(UnreadableError, match=f"Could not load the model {model_folder} from this folder: .*{message}"):
        load(model_folder)


def test_a_classifier_may_be_new_and_nothing_else(model_folder: Path, classifier_folder: Path) -> None:
    start = load_encoder(str(model_folder))
    assert isinstance(start.load(TinyBertForSequenceClassification), TinyBertForSequenceClassification)
    other = load_encoder(str(classifier_folder))
    other.config.num_labels = 5
    assert other.load(TinyBertForSequenceClassification).classifier.weight.shape[0] == 5
    with pytest.raises(UnreadableError, match=r"its weights lack classifier\.bias and 1 more"):
        load_model(TinyBertForSequenceClassification, model_folder, model_folder)


def test_commands_keep_transformers_report_of_a_new_classifier_to_themselves(model_folder: Path) -> None:
    log, told = logging.getLogger("transformers.modeling_utils"), logging.handlers.BufferingHandler(capacity=9)
    log.addHandler(told)
    tinybert("recipes")
    try:
        load_encoder(str(model_folder)).load(TinyBertForSequenceClassification)
    finally:
        log.removeHandler(told)
        log.disabled = False
    assert not told.buffer


def test_a_bert_without_a_tensor_is_refused(bert: BertModel, bert_folder: Path) -> None:
    weights(lambda tensors: tensors.pop("encoder.layer.2.output.dense.weight"))(bert_folder)
    for load in (load_search_pipeline, lambda folder: load_encoder(str(folder))):
        with pytest.raises(UnreadableError, match=r"its weights lack encoder\.layer\.2\.output\.dense\.weight"):
            load(bert_folder)


def test_the_command_says_it_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    cut(model_folder)
    (tmp_path / "passages.txt").write_text("play music\n")
    done = tinybert("search", "--model", model_folder, "--query", "music", "--chunks", tmp_path / "passages.txt")
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith(f"error: Could not load the model {model_folder} from this folder: ")


# ---- Nobody's code but ours ----


def test_an_attention_of_another_repository_is_not_even_looked_for(model_folder: Path, bert_folder: Path) -> None:
    """transformers would fetch and run it where `kernels` is installed, and says so where it is not."""
    for folder in (model_folder, bert_folder):
        for name in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            settings(**{name: "owner/kernel"})(folder)
        assert load_search_pipeline(folder).model.config._attn_implementation == "sdpa"
        load_encoder(str(folder)).load(TinyBertModel)


def test_what_a_configuration_does_not_have_stays_behind(model_folder: Path, tmp_path: Path) -> None:
    settings(secret="token", quantization_config={"quant_method": "bitsandbytes"}, task_specific_params={"a": 1})(
        model_folder
    )
    settings(auto_map={"AutoModel": "evil/repo--evil.Model"}, custom_pipelines={"x": {"impl": "evil.X"}})(model_folder)
    TinyBertModel.from_pretrained(model_folder).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "evil" not in json.dumps(saved)
    assert not {"secret", "quantization_config", "task_specific_params"} & set(saved)
    assert saved["hidden_size"] == 32 and saved["auto_map"]["AutoModel"] == "modeling_tinybert.TinyBertModel"
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "saved"), TinyBertConfig)


@pytest.mark.parametrize("kind", ["model_folder", "bert_folder"])
def test_a_tokenizers_code_map_and_secrets_stay_behind(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    path = folder / "tokenizer_config.json"
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    before = json.loads(path.read_text())
    for auto_map in ([None, "evil.Tok"], [None, "evil/repo--evil.Tok"]):
        entries = {"auto_map": {"AutoTokenizer": auto_map}, "secret": "token", "chat_template": "{{ secret }}"}
        path.write_text(json.dumps(before | entries))
        tokenizer = load_tokenizer(folder, 5_000)
        save_tokenizer(tokenizer, tmp_path / "saved")
        assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text()).keys() >= {
            "cls_token",
            "unk_token",
        }
        for file in (tmp_path / "saved").iterdir():
            assert "evil" not in file.read_text() and "secret" not in file.read_text()
        assert not (tmp_path / "canary").exists()
