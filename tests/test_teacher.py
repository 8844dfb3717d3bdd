"""A teacher's embeddings: computed once for each text, and what training learns from them."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel, teacher
from tinybert_hf.losses import distillation_loss
from tinybert_hf.pipeline_tinybert import encode
from tinybert_hf.teacher import Teacher, embed_tokens, embed_with_teacher


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a teacher has embedded since the test began; in fp32, also where the hardware has bf16."""
    texts: list[str] = []
    monkeypatch.setattr("tinybert_hf.search.fast_dtype", lambda device: torch.float32)
    load = teacher.load_teacher

    def spy(name: str) -> tuple:
        embed, identity = load(name)
        return lambda window: (texts.extend(window), embed(window))[1], identity

    monkeypatch.setattr(teacher, "load_teacher", spy)
    return texts


def test_a_text_is_embedded_once_by_each_teacher(
    model: TinyBertModel,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    embedded: list[str],
    tmp_path: Path,
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


def test_embeddings_are_found_by_the_numbers_of_their_texts(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(teacher.constants, "HF_HOME", str(tmp_path))
    data = Dataset.from_dict({"query": ["mail", "music"], "answer": ["send mail", "mail"]})
    found = Teacher(str(model_folder), data)
    ids = torch.tensor([teacher.text_id(text) for text in ("send mail", "mail")])
    expected = embed_with_teacher(str(model_folder), ["send mail", "mail"])
    assert torch.equal(found.look_up(ids), expected.float())


def test_tokens_are_embedded_as_texts_and_turned_so_that_the_first_dimensions_tell_most(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(teacher.constants, "HF_HOME", str(tmp_path))
    tokens = [
        token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ]
    plain = embed_with_teacher(str(model_folder), tokens).float()
    plain -= plain.mean(dim=0)
    plain[tokenizer.all_special_ids] = 0
    turned = embed_tokens(str(model_folder), tokenizer)
    torch.testing.assert_close(turned @ turned.T, plain @ plain.T, rtol=1e-3, atol=1e-3)
    assert turned[tokenizer.all_special_ids].abs().max() < 1e-6
    variances = turned.square().sum(dim=0)
    assert torch.equal(variances, variances.sort(descending=True).values)


def test_a_teacher_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Could not load the teacher .*nowhere"):
        embed_with_teacher(str(tmp_path / "nowhere"), ["text"], tmp_path)


def test_the_divergence_is_zero_where_both_rank_alike() -> None:
    queries, answers = torch.randn(5, 8), torch.randn(9, 8)
    same = torch.nn.functional.normalize(queries, dim=-1), torch.nn.functional.normalize(answers, dim=-1)
    assert distillation_loss(3 * queries, answers, *same, 0.05).item() == pytest.approx(0, abs=1e-5)
    other = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    assert distillation_loss(queries, answers, other, same[1], 0.05).item() > 0.1


def test_a_teacher_of_another_width_can_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent on the divergence alone brings the rankings together."""
    monkeypatch.setattr("tinybert_hf.losses.QUERY_BLOCK", 4)  # several blocks
    torch.manual_seed(0)
    targets = [torch.nn.functional.normalize(torch.randn(n, 16), dim=-1) for n in (6, 12)]
    student = [torch.randn(n, 8, requires_grad=True) for n in (6, 12)]
    optimizer = torch.optim.Adam(student, lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = distillation_loss(student[0], student[1], targets[0], targets[1], 0.1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
