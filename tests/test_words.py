"""An encoder without layers, and the words that training starts from."""

import math

import pytest
import torch
from torch import Tensor

from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf.modeling_tinybert import mean_over_tokens
from tinybert_hf.pipeline_tinybert import pad_batch
from tinybert_hf.words import embed_words, is_words_alone, weigh_by_rarity


@pytest.fixture
def batch(config: TinyBertConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(4, config.vocab_size, (length,), generator=generator).tolist() for length in (9, 4, 1)]
    return pad_batch(texts, config.pad_token_id)


def test_a_new_encoder_is_the_mean_of_its_token_embeddings(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    config.residual_initializer_range = 0.0
    config.pooling, config.position_embedding_type = "mean", "rotary"
    model = TinyBertModel(config).eval()
    expected = embed_words(model, **batch)
    torch.testing.assert_close(model(**batch).pooler_output, expected, rtol=1e-5, atol=1e-5)
    model.layers = torch.nn.ModuleList()
    torch.testing.assert_close(model(**batch).pooler_output, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1, "this test would be vacuous: all embeddings are alike"


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("num_hidden_layers", [0, 1])
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned"])
def test_words_alone_are_what_the_model_computes_and_nothing_else_is(
    config: TinyBertConfig,
    batch: dict[str, Tensor],
    num_hidden_layers: int,
    pooling: str,
    norm_position: str,
    positions: str,
) -> None:
    config.num_hidden_layers, config.pooling, config.norm_position = num_hidden_layers, pooling, norm_position
    config.position_embedding_type = positions
    torch.manual_seed(0)
    model = TinyBertModel(config).eval()
    alike = torch.allclose(embed_words(model, **batch), model(**batch).pooler_output, rtol=1e-5, atol=1e-5)
    assert is_words_alone(config) is alike
    assert alike is ((num_hidden_layers, pooling, norm_position, positions) == (0, "mean", "pre", "rotary"))


def test_the_gradients_of_the_words_are_those_of_the_model(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    config.num_hidden_layers, config.pooling, config.position_embedding_type = 0, "mean", "rotary"
    model = TinyBertModel(config).eval()
    gradients = []
    for pooled in (embed_words(model, **batch), model(**batch).pooler_output):
        model.zero_grad()
        pooled.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_words_are_dropped_in_training(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    model = TinyBertModel(config).train()
    torch.manual_seed(0)
    actual = embed_words(model, **batch)
    torch.manual_seed(0)
    hidden_states = model.embeddings(batch["input_ids"], None, None, None)
    assert torch.equal(actual, mean_over_tokens(hidden_states, batch["attention_mask"]))
    assert not torch.allclose(actual, embed_words(model.eval(), **batch), atol=1e-3)


def test_a_text_without_tokens_is_finite(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    model = TinyBertModel(config).eval()
    before = embed_words(model, **batch)
    batch["attention_mask"][2] = False
    after = embed_words(model, **batch)
    assert after.isfinite().all()
    assert torch.equal(after[:2], before[:2])


def test_training_begins_with_rare_words_heavier(model: TinyBertModel) -> None:
    before = model.get_input_embeddings().weight.detach().clone()
    weigh_by_rarity(model, [[1, 5, 5, 6, 2], [1, 5, 2], [1, 5, 7, 2]])
    ratio = (model.get_input_embeddings().weight / before).mean(dim=1)
    torch.testing.assert_close(ratio[5] / ratio[6], torch.tensor(math.log1p(0.5 / 3.5) / math.log1p(2.5 / 1.5)))
    assert ratio[1] == ratio[2] == ratio[5] < ratio[6] == ratio[7] < ratio[8]
    assert ratio[[1, 2, 5, 6, 7]].mean().item() == pytest.approx(1, abs=1e-5)
