"""The words of a new model start as a teacher has them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertModel, load_search_pipeline
from tinybert_hf.errors import MissingFileError
from tinybert_hf.evaluation import load_text_encoder
from tinybert_hf.words import start_from_teacher


def embeddings(model: TinyBertModel) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


@pytest.fixture
def as_texts(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What the teacher, 32 wide, makes of the tokens: centred, special ones left out."""
    tokens = [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    plain = load_search_pipeline(model_folder).encode(tokens)
    plain -= plain.mean(dim=0)
    plain[tokenizer.all_special_ids] = 0
    return plain


@pytest.fixture
def taught(
    model_folder: Path, config: TinyBertConfig, tokenizer: PreTrainedTokenizerBase
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The embeddings of a new model of a width, before and after it started from the teacher."""

    def start(width: int) -> tuple[Tensor, Tensor]:
        config.hidden_size = width
        model = TinyBertModel(config)
        before = embeddings(model)
        start_from_teacher(model, tokenizer, load_text_encoder(str(model_folder)).encode_documents)
        return before, embeddings(model)

    return start


def test_tokens_start_as_the_teacher_embeds_them_as_texts(
    taught: Callable[[int], tuple[Tensor, Tensor]], tokenizer: PreTrainedTokenizerBase, as_texts: Tensor
) -> None:
    before, after = taught(64)
    own = after[:, :32]
    scale = before.std() / as_texts.std()
    torch.testing.assert_close(own @ own.T, scale**2 * as_texts @ as_texts.T, rtol=1e-3, atol=1e-4 * float(scale) ** 2)
    assert own[tokenizer.all_special_ids].abs().max() < 1e-6
    assert own.std().item() == pytest.approx(before.std().item(), rel=1e-4)
    assert torch.equal(after[:, 32:], before[:, 32:])


def test_a_narrower_model_takes_the_dimensions_that_tell_most(
    taught: Callable[[int], tuple[Tensor, Tensor]], as_texts: Tensor
) -> None:
    before, after = taught(16)
    variances = after.square().sum(dim=0)
    assert torch.equal(variances, variances.sort(descending=True).values)
    assert after.std().item() == pytest.approx(before.std().item(), rel=1e-4)
    parts = torch.linalg.svd(as_texts)
    principal = parts.U[:, :16] * parts.S[:16]
    telling = principal.norm(dim=1) > 1e-3
    similarities = cosine_similarity((after @ after.T)[telling], (principal @ principal.T)[telling])
    torch.testing.assert_close(similarities, torch.ones_like(similarities), rtol=0, atol=1e-3)


def test_a_teacher_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"There is no model .*nowhere"):
        load_text_encoder(str(tmp_path / "nowhere"))
