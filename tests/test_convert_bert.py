"""An encoder taken over from BERT computes what transformers' `BertModel` computes."""

import json
import shutil
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import TEXTS
from loopback_hub import LoopbackHub
from publishing import contents
from transformers import AutoConfig, AutoTokenizer, BertModel

from tinybert_hf import TinyBertModel
from tinybert_hf.convert_bert import read_config
from tinybert_hf.errors import InputError
from tinybert_hf.training.start import load_encoder


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


def test_fewer_layers_are_evenly_spaced_and_keep_the_first_positions(bert: BertModel, bert_folder: Path) -> None:
    taken = load_encoder(str(bert_folder), "num_hidden_layers=2,max_position_embeddings=12")
    model = taken.load(TinyBertModel).eval()
    bert.encoder.layer = torch.nn.ModuleList([bert.encoder.layer[0], bert.encoder.layer[3]])
    batch = taken.tokenizer([*TEXTS, " ".join(TEXTS)], truncation=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 12
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).last_hidden_state[real], bert(**batch).last_hidden_state[real])


def describe(folder: Path, pooling: dict[str, object], *more: str) -> None:
    """What makes a folder a SentenceTransformer: its modules, how it pools and where it cuts."""
    names = ["Transformer", "Pooling", *more]
    modules = [{"type": f"sentence_transformers.models.{name}", "path": f"{i}_{name}"} for i, name in enumerate(names)]
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
def test_what_a_sentence_transformer_says_is_kept(bert_folder: Path, settings: dict[str, object], pooling: str) -> None:
    describe(bert_folder, settings, "Normalize")
    taken = load_encoder(str(bert_folder))
    assert (taken.config.pooling, taken.config.max_position_embeddings) == (pooling, 20)
    assert taken.tokenizer.model_max_length == 20


def test_another_pooling_and_further_layers_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "other")
    describe(bert_folder, {"pooling_mode": "max"})
    with pytest.raises(InputError, match=r"pools by max; only the first token \(cls\) or the mean"):
        load_encoder(str(bert_folder))
    describe(tmp_path / "other", {"pooling_mode": "mean"}, "Dense")
    with pytest.raises(InputError, match="further layers after its encoder, which cannot be taken over: Dense"):
        load_encoder(str(tmp_path / "other"))


def test_relative_positions_are_refused(bert_folder: Path) -> None:
    config = AutoConfig.from_pretrained(bert_folder)
    config.position_embedding_type = "relative_key"
    with pytest.raises(InputError, match="has relative_key positions; only absolute ones can be taken over"):
        read_config(str(bert_folder), config, AutoTokenizer.from_pretrained(bert_folder), None)


@pytest.mark.parametrize("pooling", ["cls", None])
def test_one_on_the_hub_is_taken_over_with_or_without_pooling_of_its_own(
    bert_folder: Path, hub: LoopbackHub, tmp_path: Path, pooling: str | None
) -> None:
    if pooling:
        describe(bert_folder, {"pooling_mode": pooling})
    hub.add_repo("model", "tester/bert", contents(bert_folder))
    code = """
        from tinybert_hf.training.start import load_encoder
        start = load_encoder("tester/bert", "num_hidden_layers=2")
        print(start.config.pooling, len(start.weights))
    """
    printed = fresh_process.run_python(code, tmp_path, hub.env(tmp_path), without_package=False)
    assert printed.split() == [pooling or "mean", "29"]
