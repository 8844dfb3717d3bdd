"""An encoder taken over from another project computes what transformers' own class computes."""

import json
import shutil
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import TEXTS
from loopback_hub import LoopbackHub
from other_encoders import KINDS, save_encoder
from publishing import contents
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer, BertModel

from tinybert_hf import TinyBertModel, load_search_pipeline
from tinybert_hf.convert_bert import load_bert_tokenizer, load_encoder, read_config, read_prompts
from tinybert_hf.errors import InputError
from tinybert_hf.tokenization import save_tokenizer


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_computes_what_its_own_class_does(kind: str, tmp_path: Path) -> None:
    other = save_encoder(kind, tmp_path)
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        [*TEXTS, " ".join(TEXTS * 3)], padding=True, truncation=True, max_length=30, return_tensors="pt"
    )
    real = batch["attention_mask"].bool()
    assert not real.all() and batch["input_ids"].shape[1] == 30, "this test would be vacuous"
    start = load_encoder(str(tmp_path))
    assert start.config.max_position_embeddings == start.tokenizer.model_max_length == 30
    assert start.config.pad_token_id == batch["input_ids"][~real][0], "the tokenizer's, whatever the model says"
    start.load(TinyBertModel).save_pretrained(tmp_path / "ours")
    ours = TinyBertModel.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        expected, found = (model(**batch).last_hidden_state[real] for model in (other, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5, "this test would be vacuous"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_embeds_as_sentence_transformers_has_it(kind: str, tmp_path: Path) -> None:
    save_encoder(kind, tmp_path)
    expected = SentenceTransformer(str(tmp_path)).encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    found = load_search_pipeline(tmp_path, dtype=torch.float32).encode(TEXTS)
    torch.testing.assert_close(found, expected.cpu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_stays_what_it_was_when_it_is_saved_with_a_model(kind: str, tmp_path: Path) -> None:
    save_encoder(kind, tmp_path)
    start = load_encoder(str(tmp_path))
    expected = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, TEXTS[::-1], padding=True)
    assert start.tokenizer(TEXTS, TEXTS[::-1], padding=True).data == expected.data, "special tokens and segments"
    save_tokenizer(start.tokenizer, tmp_path / "saved")
    start.config.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(TEXTS, TEXTS[::-1], padding=True).data == expected.data
    assert saved.special_tokens_map == start.tokenizer.special_tokens_map


@pytest.mark.parametrize("form", ["shards", "pytorch_model.bin"])
def test_weights_in_several_files_or_in_an_older_form_are_read(form: str, bert: BertModel, bert_folder: Path) -> None:
    expected = load_encoder(str(bert_folder)).weights
    (bert_folder / "model.safetensors").unlink()
    if form == "shards":
        bert.save_pretrained(bert_folder, max_shard_size="50KB")
        assert len(list(bert_folder.glob("model-*.safetensors"))) > 1, "this test would be vacuous"
    else:
        torch.save(bert.state_dict(), bert_folder / form)
    found = load_encoder(str(bert_folder)).weights
    assert expected and found and expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_start_of_half_precision_is_trained_in_full_precision(bert: BertModel, bert_folder: Path) -> None:
    bert.half().save_pretrained(bert_folder)
    model = load_encoder(str(bert_folder)).load(TinyBertModel)
    assert model.dtype == torch.float32


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


@pytest.mark.parametrize("longest, expected", [(20, 20), (10_000, 40), (None, 32)])
def test_texts_are_cut_where_the_start_says_and_where_its_positions_end(
    bert_folder: Path, longest: int | None, expected: int
) -> None:
    (bert_folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    taken = load_encoder(str(bert_folder))  # of 40 positions, with a tokenizer that cuts after 32 tokens
    assert taken.config.max_position_embeddings == taken.tokenizer.model_max_length == expected


PREFIXES = {"query": "query: ", "document": "passage: "}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, ("", "")),
        ({"prompts": {"query": "query: ", "passage": "passage: "}}, ("query: ", "passage: ")),
        ({"prompts": {"query": "Find: ", "document": ""}, "default_prompt_name": None}, ("Find: ", "")),
        ({"prompts": {"query": "a", "document": "", "passage": "b"}}, ("a", "b")),
        ({"prompts": {"query": None, "document": None}}, ("", "")),
        ({"prompts": {"query": "a", "other": "c"}, "default_prompt_name": "other"}, ("a", "c")),
        ({"prompts": {"other": "c"}}, ("", "")),
    ],
)
def test_the_prompts_of_a_sentence_transformer_are_kept(
    bert_folder: Path, settings: dict[str, object], expected: tuple[str, str]
) -> None:
    (bert_folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prompts = dict(zip(("query", "document"), expected, strict=True))
    assert read_prompts(str(bert_folder), None) == prompts
    assert load_encoder(str(bert_folder)).config.prompts == {kind: text for kind, text in prompts.items() if text}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config_sentence_transformers.json", '{"default_prompt_name": "s"}', r"has no prompt 's', its default_prompt"),
        ("config_sentence_transformers.json", "{", "config_sentence_transformers.json is no valid JSON"),
    ],
)
def test_settings_that_contradict_themselves_are_named(
    bert_folder: Path, file: str, content: str, message: str
) -> None:
    (bert_folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        load_encoder(str(bert_folder))
    with pytest.raises(InputError, match=message):
        load_search_pipeline(bert_folder)


def test_prompts_that_are_left_out_of_the_pooling_are_refused(bert_folder: Path) -> None:
    describe(bert_folder, {"pooling_mode": "mean", "include_prompt": False})
    assert load_encoder(str(bert_folder)).config.pooling == "mean", "there are none"
    (bert_folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PREFIXES}))
    with pytest.raises(InputError, match="leaves its prompts out of the pooling, which is not supported"):
        load_encoder(str(bert_folder))


def test_a_tokenizer_that_is_not_there_or_cannot_pad_is_named(bert_folder: Path) -> None:
    config = AutoConfig.from_pretrained(bert_folder)
    path = bert_folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    with pytest.raises(InputError, match=r"has no padding. Name its pad_token in tokenizer_config.json"):
        load_bert_tokenizer(str(bert_folder), config, None)
    path.unlink()
    (bert_folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no words. Put its files into the folder"):  # transformers makes one up
        load_bert_tokenizer(str(bert_folder), config, None)


def test_a_decoder_is_refused(bert_folder: Path) -> None:
    path = bert_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_decoder": True}))
    with pytest.raises(InputError, match="is a decoder; only encoders are supported"):
        load_encoder(str(bert_folder))


def test_another_pooling_and_further_layers_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "other")
    describe(bert_folder, {"pooling_mode": "max"})
    with pytest.raises(InputError, match=r"pools by max; only the first token \(cls\) or the mean"):
        load_encoder(str(bert_folder))
    describe(tmp_path / "other", {"pooling_mode": "mean"}, "Dense")
    with pytest.raises(InputError, match="more layers after its encoder, which is not supported: Dense"):
        load_encoder(str(tmp_path / "other"))


def test_relative_positions_are_refused(bert_folder: Path) -> None:
    config = AutoConfig.from_pretrained(bert_folder)
    config.position_embedding_type = "relative_key"
    with pytest.raises(InputError, match="has relative_key positions; only absolute ones are supported"):
        read_config(str(bert_folder), config, AutoTokenizer.from_pretrained(bert_folder), None)


@pytest.mark.slow
def test_one_on_the_hub_is_taken_over_with_or_without_pooling_of_its_own(
    bert_folder: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo("model", "tester/without", contents(bert_folder))
    describe(bert_folder, {"pooling_mode": "cls"})
    hub.add_repo("model", "tester/with", contents(bert_folder))
    code = """
        from tinybert_hf.convert_bert import load_encoder
        for name in ("without", "with"):
            start = load_encoder(f"tester/{name}", "num_hidden_layers=2")
            print(start.config.pooling, len(start.weights))
    """
    printed = fresh_process.run_stranger(code, tmp_path, hub.env(tmp_path), without_package=False)
    assert printed.splitlines() == ["mean 29", "cls 29"]


@pytest.mark.slow
def test_everything_of_a_start_is_read_at_the_revision_that_was_asked_for(
    bert_folder: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    describe(bert_folder, {"pooling_mode": "cls"})
    (bert_folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "old: "}}))
    hub.add_repo("model", "tester/bert", contents(bert_folder))
    code = """
        from huggingface_hub import HfApi
        from tinybert_hf import load_search_pipeline

        first = HfApi().model_info("tester/bert").sha
        for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
            HfApi().delete_file(name, "tester/bert")
        for revision in (first, None):
            config = load_search_pipeline("tester/bert", revision=revision).model.config
            print(config.pooling, config.prompts, config.max_position_embeddings)
    """
    printed = fresh_process.run_stranger(code, tmp_path, hub.env(tmp_path), without_package=False)
    assert printed.splitlines()[-2:] == ["cls {'query': 'old: '} 20", "mean {} 32"]
