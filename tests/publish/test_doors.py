"""One folder, two doors: a model with BERT's arithmetic loads without our code in releases old and new, and with it.

make interop; python -m pytest tests/publish/test_doors.py -q
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fresh_process
import pytest
import torch
from loopback_hub import LoopbackHub
from publishing import REPO, ROOT, config_like_bert, contents, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, BertModel, PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel, encode, load_search_pipeline
from tinybert_hf.convert_bert import load_encoder
from tinybert_hf.publish.folder import build_folder

pytestmark = pytest.mark.slow  # each test builds a folder, and together they take a while

TEXTS = ["a fast compiler for small machines", "mail", "send and receive electronic mail " * 20]

# What other programs make of the folders of two encoders and a classifier, without our code.
PLAIN = """
import json, sys
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, __version__, pipeline

texts = json.loads(sys.argv[1])
classes = pipeline("text-classification", model="classifier")(texts[0], top_k=None)
answers = {"version": __version__, "classes": classes}
for encoder in ("mean", "cls"):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden_states = AutoModel.from_pretrained(encoder)(**batch).last_hidden_state
    sentences = SentenceTransformer(encoder)
    answers[encoder] = {
        "ids": batch["input_ids"].tolist(),
        "hidden_states": hidden_states.tolist(),
        "features": pipeline("feature-extraction", model=encoder)(texts[0])[0],
        "max_length": sentences.max_seq_length,
        "embeddings": sentences.encode(texts).tolist(),
        "similarity": sentences.similarity(sentences.encode(texts[:1]), sentences.encode(texts[1:])).tolist(),
        "remote": "loaded",
    }
    try:
        AutoModel.from_pretrained(encoder, trust_remote_code=True)
    except ImportError as error:
        answers[encoder]["remote"] = str(error)
print(json.dumps(answers))
"""


def save_classifier(tokenizer: PreTrainedTokenizerBase, folder: Path, pooling: str) -> Path:
    return save_model(TinyBertForSequenceClassification(config_like_bert(tokenizer, pooling)), tokenizer, folder)


def embed(model: Any, folder: Path) -> torch.Tensor:
    return encode(model, AutoTokenizer.from_pretrained(folder), TEXTS)


# ---- In environments with other releases, one process for each ----


@pytest.fixture(scope="module")
def trained(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `mean`, `cls` and `classifier`; in `published`, what is published of them."""
    folder = tmp_path_factory.mktemp("trained")
    for pooling in ("mean", "cls"):
        save_model(TinyBertModel(config_like_bert(tokenizer, pooling)), tokenizer, folder / pooling)
    save_classifier(tokenizer, folder / "classifier", "cls")
    for name in ("mean", "cls", "classifier"):
        build_folder(folder / name, folder / "published" / name, REPO)
    return folder


class Release(NamedTuple):
    environment: str
    answers: dict[str, Any]


@pytest.fixture(
    scope="module",
    params=["", *(pytest.param(name, marks=pytest.mark.interop) for name in (".interop-4.57", ".interop-4.41"))],
)
def release(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """What an environment makes of what is published."""
    environment = request.param
    python = ROOT / environment / "bin" / "python" if environment else Path(sys.executable)
    assert python.exists(), f"{python} is missing: run `make interop`."
    env = os.environ | fresh_process.NO_NETWORK | {"HF_HOME": str(tmp_path_factory.mktemp("home"))}
    env.pop("PYTHONPATH", None)
    printed = fresh_process.run([python, "-c", PLAIN, json.dumps(TEXTS)], env, trained / "published")
    return Release(environment, json.loads(printed.splitlines()[-1]))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_releases_old_and_new_load_an_encoder_without_its_code(
    release: Release, trained: Path, tokenizer: PreTrainedTokenizerBase, pooling: str
) -> None:
    answers = release.answers[pooling]
    model = TinyBertModel.from_pretrained(trained / pooling).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    assert answers["ids"] == batch["input_ids"].tolist() and not real.all()
    with torch.inference_mode():
        hidden_states = model(**batch).last_hidden_state
    embeddings = embed(model, trained / pooling)
    features = hidden_states[0, : len(answers["features"])]
    for name, found, expected in (
        ("AutoModel", torch.tensor(answers["hidden_states"])[real], hidden_states[real]),
        ("feature-extraction", torch.tensor(answers["features"]), features),
        ("SentenceTransformer", torch.tensor(answers["embeddings"]), embeddings),
        ("similarity", torch.tensor(answers["similarity"]), embeddings[:1] @ embeddings[1:].T),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=name)
    assert answers["max_length"] == 32


def test_releases_old_and_new_load_a_classifier_without_its_code(
    release: Release, trained: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = TinyBertForSequenceClassification.from_pretrained(trained / "classifier").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(TEXTS[0], return_tensors="pt"))[0]
    assert {answer["label"]: answer["score"] for answer in release.answers["classes"]} == pytest.approx(
        dict(zip(("negative", "positive"), logits.softmax(dim=-1)[0].tolist(), strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_release_that_cannot_run_the_code_says_which_one_can(release: Release, pooling: str) -> None:
    remote = release.answers[pooling]["remote"]
    if not release.environment:
        assert remote == "loaded"
        return
    assert release.environment.endswith(".".join(release.answers["version"].split(".")[:2]))
    assert remote.startswith("This code needs transformers 5.0 or later, not 4.")
    assert "\n" not in remote


# ---- In this process ----


def test_the_weights_load_through_both_doors_as_they_were_trained(encoder_like_bert: Path, tmp_path: Path) -> None:
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    plain, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(plain) is BertModel and not loading["missing_keys"] and not loading["unexpected_keys"]
    own, loading = TinyBertModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    trained = TinyBertModel.from_pretrained(encoder_like_bert)
    for model in (own, AutoModel.from_pretrained(folder, trust_remote_code=True)):
        assert type(model).__name__ == "TinyBertModel" and model.config.model_type == "tinybert"
        assert model.state_dict().keys() == trained.state_dict().keys()
        assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    assert TinyBertModel.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_how_a_model_ranks_anew_is_published_through_both_doors(encoder_like_bert: Path, tmp_path: Path) -> None:
    trained = TinyBertModel.from_pretrained(encoder_like_bert)
    trained.config.rerank_depth, trained.config.rerank_weight = 7, 0.25
    trained.config.save_pretrained(encoder_like_bert)
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    for model in (AutoModel.from_pretrained(folder), TinyBertModel.from_pretrained(folder)):
        assert (model.config.rerank_depth, model.config.rerank_weight) == (7, 0.25)


def test_a_published_folder_is_read_by_all_that_reads_a_trained_one(encoder_like_bert: Path, tmp_path: Path) -> None:
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    expected = embed(TinyBertModel.from_pretrained(encoder_like_bert), encoder_like_bert)
    start = load_encoder(str(folder))
    assert start.config.model_type == TinyBertConfig.get_config_dict(folder)[0]["model_type"] == "tinybert"
    for model in (
        start.load(TinyBertModel),
        start.load(TinyBertForSequenceClassification).tinybert,
        load_search_pipeline(folder, dtype=torch.float32).model,
    ):
        torch.testing.assert_close(embed(model, folder), expected, atol=1e-5, rtol=0)
    again = build_folder(folder, tmp_path / "again", REPO)
    assert contents(again) == contents(folder)


def split_weights(folder: Path) -> None:
    """Put the weights into two files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{part}-of-00002.safetensors": [*weights][part - 1 :: 2] for part in (1, 2)}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files_load(encoder_like_bert: Path, tmp_path: Path) -> None:
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    expected = embed(TinyBertModel.from_pretrained(folder), folder)
    split_weights(folder)
    assert torch.equal(embed(TinyBertModel.from_pretrained(folder), folder), expected)


def test_weights_in_several_files_and_of_a_revision_load_from_the_hub(
    trained: Path, tmp_path: Path, hub: LoopbackHub
) -> None:
    """In a process without the package, which saves them too."""
    commits = {}
    for pooling in ("mean", "cls"):
        folder = build_folder(trained / pooling, tmp_path / pooling, REPO)
        split_weights(folder)
        commits[pooling] = hub.add_repo("model", f"tester/{pooling}", contents(folder))
        hub.add_commit(f"tester/{pooling}", {"config.json": b"{}"})
    code = f"""
        import json
        from transformers import pipeline

        embeddings = {{}}
        for pooling, commit in {commits!r}.items():
            model = f"tester/{{pooling}}"
            search = pipeline("semantic-search", model=model, revision=commit, trust_remote_code=True)
            search.model.save_pretrained(f"saved/{{pooling}}")
            embeddings[pooling] = search.encode({TEXTS!r}).tolist()
        print(json.dumps(embeddings))
    """
    printed = fresh_process.run_stranger(code, tmp_path, hub.env(tmp_path / "home"))
    for pooling, embeddings in json.loads(printed.splitlines()[-1]).items():
        expected = embed(TinyBertModel.from_pretrained(trained / pooling), trained / pooling)
        torch.testing.assert_close(torch.tensor(embeddings), expected, atol=1e-6, rtol=0, msg=pooling)
        assert (tmp_path / "saved" / pooling / "pipeline_tinybert.py").exists()


def test_a_missing_tensor_is_reported_under_our_name(encoder_like_bert: Path, tmp_path: Path) -> None:
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.key.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, loading = TinyBertModel.from_pretrained(folder, output_loading_info=True)
    assert set(loading["missing_keys"]) == {"layers.1.attention.qkv.weight"}


def test_a_classifier_that_bert_cannot_compute_keeps_its_code(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """BERT classifies the first token. A folder that it would load with a random layer must not name it."""
    for pooling, model_type in (("mean", "tinybert"), ("cls", "bert")):
        trained = save_classifier(tokenizer, tmp_path / pooling, pooling)
        folder = build_folder(trained, tmp_path / f"{pooling}-published", REPO)
        assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
        before = TinyBertForSequenceClassification.from_pretrained(trained).state_dict()
        after = TinyBertForSequenceClassification.from_pretrained(folder).state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert embed(TinyBertModel.from_pretrained(folder), folder).isfinite().all()


def test_a_classifier_that_was_trained_on_as_bert_is_not_taken_for_ours(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = build_folder(save_classifier(tokenizer, tmp_path / "c", "cls"), tmp_path / "published", REPO)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 1] = 0.1
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="was trained on as BERT"):
        TinyBertForSequenceClassification.from_pretrained(folder)


def test_other_arithmetic_stays_ours(encoder: Path, tmp_path: Path) -> None:
    config = json.loads((build_folder(encoder, tmp_path / "published", REPO) / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("tinybert", ["TinyBertModel"])
