"""A teacher's embeddings of the tokens of a new model."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tinybert_hf import load_search_pipeline
from tinybert_hf.errors import UnreadableError
from tinybert_hf.training.teacher import embed_tokens


def test_tokens_are_embedded_as_texts_and_turned_so_that_the_first_dimensions_tell_most(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    plain = load_search_pipeline(model_folder).encode(tokens)
    plain -= plain.mean(dim=0)
    plain[tokenizer.all_special_ids] = 0
    turned = embed_tokens(str(model_folder), tokenizer)
    torch.testing.assert_close(turned @ turned.T, plain @ plain.T, rtol=1e-3, atol=1e-4)
    assert turned[tokenizer.all_special_ids].abs().max() < 1e-6
    variances = turned.square().sum(dim=0)
    assert torch.equal(variances, variances.sort(descending=True).values)


def test_a_teacher_that_is_none_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UnreadableError, match=r"Could not load the teacher .*nowhere"):
        embed_tokens(str(tmp_path / "nowhere"), tokenizer)
