"""A teacher's embeddings: computed once for each text and each token."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel, encode
from tinybert_hf.errors import UnreadableError
from tinybert_hf.training import teacher
from tinybert_hf.training.teacher import embed_tokens, embed_with_teacher


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a teacher has embedded since the test began; in fp32, also where the hardware has bf16."""
    texts: list[str] = []
    monkeypatch.setattr("tinybert_hf.encoding.fast_dtype", lambda device: torch.float32)
    load = teacher.load_teacher

    def spy(name: str) -> tuple:
        embed, identity = load(name)
        return lambda window: (texts.extend(window), embed(window))[1], identity

    monkeypatch.setattr(teacher, "load_teacher", spy)
    return texts


def test_a_text_is_embedded_once_by_each_teacher(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, model_folder: Path, embedded: list[str], tmp_path: Path
) -> None:
    first = embed_with_teacher(str(model_folder), ["fast mail", "music", "fast mail"], tmp_path)
    torch.testing.assert_close(
        first.float(), encode(model, tokenizer, ["fast mail", "music", "fast mail"]), rtol=0, atol=1e-3
    )
    again = embed_with_teacher(str(model_folder), ["photos", "music"], tmp_path)
    assert sorted(embedded) == ["fast mail", "music", "photos"]
    assert torch.equal(again[1], first[1])

    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(-1)
    model.save_pretrained(model_folder)  # another teacher in the same folder
    other = embed_with_teacher(str(model_folder), ["music"], tmp_path)
    assert not torch.allclose(other[0], first[1], atol=1e-2)


def test_a_teacher_whose_settings_changed_is_another_one(
    model: TinyBertModel, model_folder: Path, embedded: list[str], tmp_path: Path
) -> None:
    embed_with_teacher(str(model_folder), ["fast mail"], tmp_path)
    (model_folder / "evaluation_test.json").write_text("{}")  # decides nothing
    embed_with_teacher(str(model_folder), ["fast mail"], tmp_path)
    assert embedded == ["fast mail"]
    model.config.pooling = "mean" if model.config.pooling == "cls" else "cls"
    model.config.save_pretrained(model_folder)
    embed_with_teacher(str(model_folder), ["fast mail"], tmp_path)
    assert embedded == ["fast mail", "fast mail"]


def test_a_killed_teacher_goes_on_where_it_stopped(
    model_folder: Path, embedded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "WINDOW", 2)
    texts = ["mail", "fast mail", "a very fast mail", "no text is longer than this one"]
    load = teacher.load_teacher

    def dying(name: str) -> tuple:
        embed, identity = load(name)

        def embed_once(window: list[str]) -> torch.Tensor:
            if embedded:
                raise KeyboardInterrupt
            return embed(window)

        return embed_once, identity

    with monkeypatch.context() as patch:
        patch.setattr(teacher, "load_teacher", dying)
        with pytest.raises(KeyboardInterrupt):
            embed_with_teacher(str(model_folder), texts, tmp_path)
    assert embedded[:2] == texts[:1:-1]
    embedded.clear()
    embed_with_teacher(str(model_folder), texts, tmp_path)
    assert sorted(embedded) == ["fast mail", "mail"]


def test_tokens_are_embedded_as_texts_and_turned_so_that_the_first_dimensions_tell_most(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(teacher.constants, "HF_HOME", str(tmp_path))
    tokens = [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    plain = embed_with_teacher(str(model_folder), tokens).float()
    plain -= plain.mean(dim=0)
    plain[tokenizer.all_special_ids] = 0
    turned = embed_tokens(str(model_folder), tokenizer)
    torch.testing.assert_close(turned @ turned.T, plain @ plain.T, rtol=1e-3, atol=1e-3)
    assert turned[tokenizer.all_special_ids].abs().max() < 1e-6
    variances = turned.square().sum(dim=0)
    assert torch.equal(variances, variances.sort(descending=True).values)


def test_a_teacher_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"Could not load the teacher .*nowhere"):
        embed_with_teacher(str(tmp_path / "nowhere"), ["text"], tmp_path)
