"""The verification of a push, for real: the model is loaded from the Hub in a process without the package.

python -m pytest tests/publish/test_load_back.py -q
"""

from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from publishing import REPO, contents
from safetensors.torch import load_file, save_file

from tinybert_hf.onnx import FP32_FILE
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.push import HubError, load_back
from tinybert_hf.publish.space import BROWSER_MODEL

pytestmark = pytest.mark.slow


def test_a_copy_on_the_hub_that_is_not_the_local_model_is_found_out(
    encoder: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real verification, of weights that changed by a thousandth and of a folder without its code."""
    folder = build_folder(encoder, tmp_path / "published", REPO)
    for name, value in hub.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    files = contents(folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1e-3
    save_file(weights, tmp_path / "other.safetensors", metadata={"format": "pt"})
    files["model.safetensors"] = (tmp_path / "other.safetensors").read_bytes()
    commit = hub.add_repo("model", REPO, files)
    with pytest.raises(HubError, match="an output of the model differs by"):
        load_back(folder, REPO, commit, hub.url)
    del files["modeling_tinybert.py"]
    commit = hub.add_repo("model", REPO, files)
    with pytest.raises(HubError, match=r"modeling_tinybert\.py"):
        load_back(folder, REPO, commit, hub.url)


def test_onnx_models_on_the_hub_are_compared_with_those_of_the_folder(
    encoder: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real verification, of ONNX models as they should be, of another model, and cut off."""
    for name, value in hub.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    folder = build_folder(encoder, tmp_path / "published", REPO, onnx=True)
    files = contents(folder)
    load_back(folder, REPO, hub.add_repo("model", REPO, files), hub.url)
    for content, message in (
        (files[FP32_FILE], r"an output of onnx/model_quantized\.onnx differs by"),
        (files[BROWSER_MODEL][:1000], "InvalidProtobuf"),
    ):
        commit = hub.add_repo("model", REPO, files | {BROWSER_MODEL: content})
        with pytest.raises(HubError, match=message):
            load_back(folder, REPO, commit, hub.url)
