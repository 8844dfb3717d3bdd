"""ONNX: the exported models, encoding with them, and the tools that load them from a published folder.

    make interop; python -m pytest tests/test_onnx.py -q

fastembed asks for another huggingface_hub than this package, so it has a virtual environment of its own.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import fresh_process
import onnxruntime
import pytest
import torch
from conftest import TEXTS
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from publishing import REPO, ROOT, Command, contents
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertModel, encode
from tinybert_hf.errors import InputError, MissingFileError
from tinybert_hf.onnx import FP32_FILE, INT8_FILE, OnnxEncoder, export_onnx
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.tokenization import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.slow  # an export takes ten seconds
INTEROP = ROOT / ".interop"
LONG = "send and receive electronic mail " * 20
SHOWN = [
    "chat with friends",
    "A client for instant messaging over the XMPP protocol, with group rooms and file transfer.",
]  # in the card


@pytest.fixture(scope="module", params=["cls", "mean", "bert"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX models, built once for each arithmetic: the original project's, the default, and BERT's."""
    arithmetic: dict[str, Any] = {
        "cls": {"pooling": "cls", "position_embedding_type": "sinusoidal"},
        "mean": {},
        "bert": {
            "norm_position": "post",
            "position_embedding_type": "learned",
            "hidden_act": "gelu",
            # LayerNorm makes texts alike in which segment and position outweigh the tokens
            "embedding_initializer_range": 0.4,
        },
    }
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, model_max_length=64)
    config = TinyBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        residual_initializer_range=0.1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.4,  # otherwise all texts have nearly the same first token
        **arithmetic[request.param],
    )
    folder = tmp_path_factory.mktemp(request.param)
    TinyBertModel(config).save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    return build_folder(folder / "model", folder / "published", REPO, onnx=True)


def expected(folder: Path, texts: list[str]) -> Tensor:
    return encode(TinyBertModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), texts)


@pytest.mark.parametrize(("file", "tolerance"), [(FP32_FILE, 1e-5), (INT8_FILE, 0.05)])
def test_an_exported_model_gives_the_models_outputs_by_name(published: Path, file: str, tolerance: float) -> None:
    session = onnxruntime.InferenceSession(published / file)
    tokenizer = AutoTokenizer.from_pretrained(published)
    model = TinyBertModel.from_pretrained(published)
    assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
    for texts in (["mail"], [*TEXTS, LONG]):
        batch = tokenizer(texts, padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt")
        found = session.run(None, {name: values.numpy() for name, values in batch.items()})
        outputs = dict(zip([node.name for node in session.get_outputs()], map(torch.from_numpy, found), strict=True))
        with torch.inference_mode():
            own = model(**batch)
        torch.testing.assert_close(outputs["sentence_embedding"], expected(published, texts), atol=tolerance, rtol=0)
        tokens = batch["attention_mask"].bool()  # what stands at padding is arbitrary
        for name, rows in (("pooler_output", ...), ("last_hidden_state", tokens)):
            error = outputs[name][rows] - own[name][rows]
            assert error.norm() <= tolerance * own[name][rows].norm()
    assert batch["input_ids"].shape == (9, 64)


def test_the_weights_of_the_small_one_have_8_bits(published: Path) -> None:
    graph = (published / INT8_FILE).read_bytes()
    pre_norm = TinyBertConfig.from_pretrained(published).norm_position == "pre"
    assert graph.count(b"MatMulInteger") == (
        8 if pre_norm else 6
    )  # four in each layer, or all but the feed-forward's second
    assert b"MatMulInteger" not in (published / FP32_FILE).read_bytes()
    assert len(graph) < (published / FP32_FILE).stat().st_size


def test_encode_runs_an_onnx_model_in_place_of_the_pytorch_one(published: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    texts = [*TEXTS, LONG, ""]
    torch.testing.assert_close(
        encode(OnnxEncoder(published, FP32_FILE), tokenizer, texts), expected(published, texts), atol=1e-5, rtol=0
    )
    cosines = encode(OnnxEncoder(published), tokenizer, texts) @ expected(published, texts).T
    assert cosines.diagonal().min() > 0.99
    assert cosines.triu(diagonal=1).max() < 0.98  # other texts are told apart


def test_what_an_onnx_encoder_cannot_do_is_an_error(published: Path, model_folder: Path) -> None:
    encoder = OnnxEncoder(published)
    ones = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(TypeError, match="token_type_ids"):  # single texts, no pairs
        encoder(input_ids=ones, attention_mask=ones, token_type_ids=ones)
    with pytest.raises(TypeError, match="positional"):
        encoder(ones, ones)  # type: ignore[misc]
    with pytest.raises(MissingFileError, match=r"has no onnx/model_quantized\.onnx; .* --onnx"):
        OnnxEncoder(model_folder)


@pytest.mark.parametrize("published", ["cls"], indirect=True)
def test_a_build_with_onnx_can_be_repeated_and_says_what_8_bits_cost(published: Path, tmp_path: Path) -> None:
    again = build_folder(published, tmp_path / "again", REPO, onnx=True)
    assert contents(again) == contents(published)
    card = ModelCard.load(published / "README.md")
    assert {"onnx", "transformers.js"} < set(card.data.tags)
    for file, kind in ((FP32_FILE, "fp32"), (INT8_FILE, "int8")):
        cosine = float(re.search(rf"`{file}` \| {kind} \| (\d\.\d+) ", card.text)[1])
        assert 0.99 < cosine <= 1
    card = ModelCard.load(build_folder(published, tmp_path / "without", REPO) / "README.md")
    assert "onnx" not in card.content and not (tmp_path / "without" / "onnx").exists()


def test_a_model_that_8_bits_spoil_is_not_published(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, model_folder: Path
) -> None:
    with torch.no_grad():  # one weight so large that all others round to 0
        model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("[UNK]"), 0] = 1e4
    with pytest.raises(InputError, match=r"model_quantized\.onnx has a cosine of .* leave --onnx out"):
        export_onnx(model, tokenizer, model_folder, TEXTS)


def test_a_missing_extra_and_a_classifier_are_named(
    command: Command, model_folder: Path, classifier_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--output_dir", tmp_path / "published", "--onnx"]
    assert "only encoders are exported" in command("--model", classifier_folder, *argv)
    monkeypatch.delitem(sys.modules, "tinybert_hf.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'tinybert_hf[onnx]'" in command("--model", model_folder, *argv)
    assert not (tmp_path / "published").exists()


# ---- Other people's tools ----


def check_snippet(
    hub: LoopbackHub,
    published: Path,
    language: str,
    tool: str,
    argv: list[str | Path],
    before: str,
    after: str,
    home: Path,
) -> None:
    """Run a snippet of the card in another tool, against the model on the Hub; `after` prints its two embeddings."""
    assert INTEROP.is_dir(), f"{INTEROP} is missing: run `make interop`."
    found = re.findall(rf"```{language}\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    (snippet,) = (code for code in found if tool in code)
    hub.add_repo("model", REPO, contents(published))
    env = hub.env(home) | {"FASTEMBED_CACHE_PATH": str(home)}
    *_, printed, embeddings = fresh_process.run([*argv, before + snippet + after], env, INTEROP).splitlines()
    first, second = expected(published, SHOWN)
    assert float(printed) == pytest.approx(float(first @ second), abs=0.02)
    cosines = (torch.tensor(json.loads(embeddings)) * torch.stack([first, second])).sum(dim=-1)
    assert cosines.min() > 0.99 and cosines.max() < 1 + 1e-5


@pytest.mark.interop
def test_fastembed_gives_the_same_embeddings(published: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    after = "import json; print(json.dumps([embedding.tolist() for embedding in embeddings]))"
    check_snippet(hub, published, "py", "fastembed", ["bin/python", "-c"], "", after, tmp_path)


@pytest.mark.interop
def test_transformers_js_gives_the_same_embeddings(published: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    before = f"""
        import {{ env }} from "@huggingface/transformers";
        env.remoteHost = "{hub.url}";
        env.cacheDir = "{tmp_path}";
    """
    after = "console.log(JSON.stringify([a, b]));"
    check_snippet(
        hub,
        published,
        "js",
        "huggingface/transformers",
        ["bin/node", "--input-type=module", "-e"],
        before,
        after,
        tmp_path,
    )


def test_onnxruntime_runs_the_cards_snippet(published: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("model", REPO, contents(published))
    card = (published / "README.md").read_text()
    (snippet,) = (code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "onnxruntime" in code)
    printed = fresh_process.run_stranger(snippet, tmp_path, hub.env(tmp_path))
    first, second = expected(published, SHOWN)
    assert float(printed) == pytest.approx(float(first @ second), abs=0.02)
