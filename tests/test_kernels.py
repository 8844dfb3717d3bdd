"""The CPU kernels compute what plain torch computes, and step aside where they cannot.

python -m pytest tests/test_kernels.py -q
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf.kernels import (
    LEAST_TOKENS_TO_PACK,
    CpuKernels,
    SparseEmbeddingGradient,
    can_pack,
    dropout,
    dropout_mask,
    mean_of_words,
)
from tinybert_hf.pipeline_tinybert import pad_batch

FEW, MANY = 0, LEAST_TOKENS_TO_PACK  # tokens: weights are not packed, and are
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def skip_where_nothing_is_packed(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor or this torch has no packed weights of {dtype}")


@pytest.fixture
def forget_packing() -> Iterator[None]:
    """What `can_pack` found out before the test and during it does not count."""
    can_pack.cache_clear()
    yield
    can_pack.cache_clear()


def build(config: TinyBertConfig, dropout: float = 0.0) -> TinyBertModel:
    """A model in training mode whose weights are far from their small initial values."""
    torch.manual_seed(0)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    model = TinyBertModel(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def batch(config: TinyBertConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(4, config.vocab_size, (length,), generator=generator).tolist() for length in (9, 4, 1)]
    return pad_batch(texts, config.pad_token_id)


def run(
    model: TinyBertModel, batch: dict[str, Tensor], kernels: CpuKernels | None, precision: str, seed: int = 2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Two forward and backward passes: the last output, and the sum of their gradients."""
    torch.manual_seed(seed)
    model.zero_grad()
    with kernels or nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(2):
            output = model(**batch)
            hidden = output.last_hidden_state[batch["attention_mask"]].float()
            (output.pooler_output.float().sum() + hidden.square().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients


def distances(first: tuple[Tensor, dict[str, Tensor]], second: tuple[Tensor, dict[str, Tensor]]) -> dict[str, float]:
    """How far outputs and gradients of two runs are apart, as a part of the second."""
    assert first[1].keys() == second[1].keys() and second[1]
    assert all(gradient.dtype == torch.float32 for gradient in first[1].values())
    pairs = {"output": (first[0], second[0])} | {name: (first[1][name], second[1][name]) for name in second[1]}
    return {name: ((one - other).norm() / other.norm()).item() for name, (one, other) in pairs.items()}


def count_packing(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the weights that are packed from now on."""
    shapes: list[torch.Size] = []
    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)

    def spy(weight: Tensor, num_rows: int) -> Tensor:
        shapes.append(weight.shape)
        return pack(weight, num_rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", spy, raising=False)
    return shapes


# ---- All together ----


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("num_tokens", [FEW, MANY])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("training", [True, False])
def test_kernels_change_neither_outputs_nor_gradients(
    config: TinyBertConfig,
    batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    training: bool,
    precision: str,
    num_tokens: int,
    norm_position: str,
) -> None:
    if num_tokens == MANY:
        skip_where_nothing_is_packed(PRECISIONS[precision])
    config.norm_position = norm_position
    model = build(config)
    exact, plain = run(model, batch, None, "fp32"), run(model, batch, None, precision)
    packed = count_packing(monkeypatch)
    actual = run(model, batch, CpuKernels(training, num_tokens), precision)
    if precision == "fp32":
        assert max(distances(actual, exact).values()) < 1e-5
    else:
        rounding = distances(plain, exact)
        assert min(rounding.values()) > 1e-4, "this test would be vacuous: nothing was rounded"
        for name, distance in distances(actual, exact).items():
            assert distance < 1.5 * rounding[name], name
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    assert len(packed) == (2 * linears if num_tokens == MANY else 0), "each once, and once transposed"


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_random_state_replays_what_was_dropped(
    config: TinyBertConfig, batch: dict[str, Tensor], precision: str, num_tokens: int
) -> None:
    if num_tokens == MANY:
        skip_where_nothing_is_packed(PRECISIONS[precision])
    model = build(config, dropout=0.3)
    first, gradients = run(model, batch, CpuKernels(True, num_tokens), precision)
    again, gradients_again = run(model, batch, CpuKernels(True, num_tokens), precision)
    assert torch.equal(again, first)
    assert all(torch.equal(gradients_again[name], gradient) for name, gradient in gradients.items())
    assert not torch.equal(run(model, batch, CpuKernels(True, num_tokens), precision, seed=3)[0], first)
    assert not torch.equal(run(model, batch, None, precision)[0], first), "the masks are not those of torch"
    model.eval()
    assert not torch.equal(run(model, batch, None, precision)[0], first), "this test would be vacuous: no dropout"


# ---- Linear layers by packed weights ----


def change_by_optimizer(model: TinyBertModel, fused: bool) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused).step()


def change_by_loading(model: TinyBertModel) -> None:
    model.load_state_dict({name: 0.5 * tensor for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize(
    ("training", "change"),
    [
        (True, partial(change_by_optimizer, fused=True)),  # as a training does
        (True, change_by_loading),
        (False, partial(change_by_optimizer, fused=False)),
        (False, change_by_loading),
    ],
)
def test_weights_that_changed_between_two_entries_are_packed_anew(
    config: TinyBertConfig,
    batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    training: bool,
    change: Callable[[TinyBertModel], None],
) -> None:
    skip_where_nothing_is_packed(torch.float32)
    model, packed = build(config), count_packing(monkeypatch)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    kernels = CpuKernels(training, num_tokens=MANY)

    def embed() -> Tensor:
        with CpuKernels(training, num_tokens=MANY) if training else kernels:  # a training makes new ones for each step
            return model(**batch).pooler_output.detach()

    before = embed()
    assert len(packed) == linears
    change(model)
    torch.testing.assert_close(embed(), model(**batch).pooler_output.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embed(), before, atol=1e-2)
    assert len(kernels.packed) <= linears, "what was packed before is forgotten"


def test_weights_that_did_not_change_are_packed_once(
    config: TinyBertConfig, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_nothing_is_packed(torch.float32)
    model, packed = build(config).eval(), count_packing(monkeypatch)
    kernels = CpuKernels(training=False, num_tokens=MANY)
    outputs = []
    for _ in range(3):
        with kernels:
            outputs.append(model(**batch).pooler_output)
    assert len(packed) == len(kernels.packed) == sum(isinstance(m, nn.Linear) for m in model.modules())
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


def test_weights_made_in_inference_mode_can_be_packed(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    """They count no changes."""
    skip_where_nothing_is_packed(torch.float32)
    with torch.inference_mode():
        model = build(config).eval()
        kernels = CpuKernels(training=False, num_tokens=MANY)
        with kernels:
            actual = model(**batch).pooler_output
        torch.testing.assert_close(actual, model(**batch).pooler_output, rtol=1e-4, atol=1e-5)
    assert kernels.packed


def test_without_a_number_weights_are_packed_after_so_many_tokens() -> None:
    skip_where_nothing_is_packed(torch.float32)
    layer, states = nn.Linear(8, 6), torch.randn(LEAST_TOKENS_TO_PACK // 4, 4, 8)
    kernels = CpuKernels(training=False)
    with kernels:
        first = layer(states)
        assert not kernels.packed
        second = layer(states)
    assert kernels.packed
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)
    fewer = CpuKernels(training=False, num_tokens=LEAST_TOKENS_TO_PACK - 1)
    with fewer:
        layer(states), layer(states)
    assert not fewer.packed


def test_what_is_no_layers_weight_is_multiplied_as_usual() -> None:
    states, weight = torch.randn(3, 8), nn.Parameter(torch.randn(6, 8))
    bias = nn.Parameter(torch.randn(6))
    kernels = CpuKernels(training=False, num_tokens=MANY)
    with kernels:
        assert torch.equal(functional.linear(states, weight), states @ weight.T)
        assert torch.equal(functional.linear(states, weight.detach(), bias), torch.addmm(bias, states, weight.T))
        assert nn.Linear(8, 6, device="meta")(states.to("meta")).shape == (3, 6)
        by_name = functional.linear(input=states, weight=weight)
    assert not kernels.packed
    torch.testing.assert_close(by_name, states @ weight.T)


def test_packed_weights_refuse_inputs_of_another_type_as_torch_does(config: TinyBertConfig) -> None:
    model = build(config)
    inputs = torch.ones(2, 3, model.config.hidden_size, dtype=torch.bfloat16)
    with CpuKernels(training=True, num_tokens=MANY), pytest.raises(RuntimeError, match="same dtype"):
        model.layers[0].mlp.up(inputs)


def test_a_frozen_weight_and_a_frozen_input_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_nothing_is_packed(torch.float32)
    packed = count_packing(monkeypatch)
    layer, states = nn.Linear(8, 6), torch.randn(3, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    with CpuKernels(training=True, num_tokens=MANY):
        layer(states).sum().backward()
        assert layer.weight.grad is None
        torch.testing.assert_close(states.grad, layer.weight.sum(dim=0).expand(3, 8))
        torch.testing.assert_close(layer.bias.grad, torch.full((6,), 3.0))
        assert len(packed) == 2
        layer.weight.requires_grad_(True)
    with CpuKernels(training=True, num_tokens=MANY):
        layer(states.detach()).sum().backward()
    assert len(packed) == 3, "no product for the gradient of the input"
    torch.testing.assert_close(layer.weight.grad, states.detach().sum(dim=0).expand(6, 8))


# ---- A torch that has changed ----


def refuse(error: Exception) -> Callable[..., Any]:
    def operator(*_: Any) -> Any:
        raise error

    return operator


def operators(**changed: Callable[..., Any]) -> SimpleNamespace:
    """In place of torch.ops.mkldnn: right ones in plain torch, but for those that are given."""
    right = {
        "_is_mkldnn_bf16_supported": lambda: True,
        "_reorder_linear_weight": lambda weight, num_rows: weight,
        "_linear_pointwise": multiply,
    }
    return SimpleNamespace(**right | changed)


def multiply(states: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    return functional.linear(states, weight, bias)


CHANGES: dict[str, tuple[SimpleNamespace, str]] = {
    "gone": (SimpleNamespace(), "are not used: .*has no attribute"),
    "renamed": (operators(_linear_pointwise=refuse(AttributeError("no such operator"))), "no such operator"),
    "other arguments": (operators(_reorder_linear_weight=refuse(TypeError("takes 1"))), "takes 1"),
    "not built in": (
        operators(_reorder_linear_weight=refuse(RuntimeError("no oneDNN. CPU: registered at\nMeta: ..."))),
        r"are not used: no oneDNN\. Encoding is slower\.$",
    ),
    "another product": (
        operators(_linear_pointwise=lambda states, weight, bias, *_: 1.01 * multiply(states, weight, bias)),
        "are not used: they compute something else",
    ),
    "without bias": (
        operators(_linear_pointwise=lambda states, weight, *_: multiply(states, weight, None)),
        "are not used: they compute something else",
    ),
}


@pytest.mark.usefixtures("forget_packing")
@pytest.mark.parametrize("change", CHANGES)
def test_a_torch_without_these_operators_computes_the_same_and_says_so_once(
    config: TinyBertConfig,
    batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    changed, message = CHANGES[change]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # everywhere the same test
    model = build(config, dropout=0.1)
    expected = run(model, batch, CpuKernels(training=True, num_tokens=FEW), "fp32")
    monkeypatch.setattr(torch.ops, "mkldnn", changed)
    with caplog.at_level("INFO", "tinybert_hf.kernels"):
        for _ in range(2):
            kernels = CpuKernels(training=True, num_tokens=MANY)
            actual = run(model, batch, kernels, "fp32")
            assert not kernels.packed
            assert torch.equal(actual[0], expected[0])
            assert all(torch.equal(actual[1][name], gradient) for name, gradient in expected[1].items())
    (line,) = caplog.messages
    assert torch.__version__ in line and "\n" not in line
    assert re.search(message, line)


@pytest.mark.usefixtures("forget_packing")
def test_operators_that_work_are_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Guards the test above: the same replacement with right products is packed."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.ops, "mkldnn", operators())
    kernels = CpuKernels(training=False, num_tokens=MANY)
    with kernels, caplog.at_level("INFO", "tinybert_hf.kernels"):
        nn.Linear(8, 6)(torch.randn(3, 8))
    assert len(kernels.packed) == 1 and not caplog.messages


@pytest.mark.usefixtures("forget_packing")
@pytest.mark.parametrize(
    ("capability", "dtype"), [("NEON", torch.float32), ("AVX2", torch.float16), ("AVX2", torch.float64)]
)
def test_nothing_is_tried_where_nobody_has_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    with caplog.at_level("INFO", "tinybert_hf.kernels"):
        assert not can_pack(dtype)
    assert not caplog.messages


@pytest.mark.usefixtures("forget_packing")
def test_a_processor_without_bf16_packs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.ops, "mkldnn", operators(_is_mkldnn_bf16_supported=lambda: False))
    assert not can_pack(torch.bfloat16)


# ---- Dropout ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 1001, dtype=dtype)
    dropped = dropout(ones, probability)
    assert (dropped.shape, dropped.dtype) == (ones.shape, dtype)
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.002)
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.005)
    assert dropped.unique().numel() == 2
    # Neighbours, who share a 64-bit number, and rows are dropped independently of each other.
    zero = (dropped == 0).float()
    for other in (zero.roll(1, dims=1), zero.roll(4, dims=1), zero.roll(1, dims=0)):
        assert (zero * other).mean().item() == pytest.approx(probability**2, abs=0.002)
    torch.manual_seed(0)
    assert torch.equal(dropout(ones, probability), dropped)


def test_dropouts_gradient_is_its_mask() -> None:
    values = torch.randn(7, 5, requires_grad=True)
    dropped = dropout(values, 0.5)
    dropped.sum().backward()
    assert values.grad is not None and (values.grad == 0).any() and (values.grad == 2).any()
    torch.testing.assert_close(values.detach() * values.grad, dropped.detach())


@pytest.mark.parametrize(
    ("dtype", "expected", "scale", "kept"),
    [
        (torch.float32, "111011101 111001110 101101111", 1.4285714626312256, 714),
        (torch.bfloat16, "111111000 111111011 111111101", 1.4296875, 720),
    ],
)
def test_masks_are_those_that_earlier_versions_drew(dtype: torch.dtype, expected: str, scale: float, kept: int) -> None:
    """Otherwise the same command trains another model. The numbers are those of commit f5892af."""
    torch.manual_seed(0)
    mask = dropout_mask(torch.Size([3, 9]), 0.3, dtype)
    assert [int(value != 0) for value in mask.flatten()] == [int(bit) for bit in expected if bit != " "]
    assert dropout_mask(torch.Size([1, 40]), 0.3, dtype).max().item() == scale
    assert dropout_mask(torch.Size([1, 1000]), 0.3, dtype).count_nonzero().item() == kept


def test_nothing_is_dropped_and_nothing_drawn_outside_of_training() -> None:
    values, state = torch.randn(7, 5), torch.get_rng_state()
    for kernels in (CpuKernels(training=True), CpuKernels(training=False)):
        with kernels:
            assert torch.equal(functional.dropout(values, 0.5, training=False), values)
            assert torch.equal(nn.Dropout(0.5).eval()(values), values)
    assert torch.equal(torch.get_rng_state(), state)


def test_kernels_that_are_not_for_training_leave_dropout_alone() -> None:
    values = torch.randn(7, 5)

    def draw() -> Tensor:
        torch.manual_seed(0)
        return functional.dropout(values, 0.5)

    plain = draw()
    with CpuKernels(training=False):
        assert torch.equal(draw(), plain)
    with CpuKernels(training=True):
        assert not torch.equal(draw(), plain), "this test would be vacuous: nothing is ever replaced"


def test_dropout_keeps_torchs_word_on_its_arguments() -> None:
    values = torch.randn(7, 5)
    assert torch.equal(dropout(values, 0.0), values)
    assert torch.equal(dropout(values, 1.0), torch.zeros(7, 5))
    for probability in (-0.1, 1.1):
        with pytest.raises(ValueError, match="has to be between 0 and 1"):
            dropout(values, probability)
    assert dropout(values.to("meta"), 0.5).shape == (7, 5)
    torch.manual_seed(0)
    expected = dropout(values, 0.5)
    torch.manual_seed(0)
    assert dropout(values, 0.5, inplace=True) is values
    assert torch.equal(values, expected)


# ---- The token embedding ----


def test_the_mean_of_words_is_the_mean_of_their_rows() -> None:
    embedding = nn.Embedding(20, 6)
    batch = pad_batch([[3, 4, 4], [5], [6, 7, 8, 9]], pad_token_id=0)
    batch["attention_mask"][1] = False  # a text without tokens

    def by_lookup() -> Tensor:
        mask = batch["attention_mask"][..., None]
        return (embedding(batch["input_ids"]) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    actual = mean_of_words(embedding, **batch)
    torch.testing.assert_close(actual, by_lookup())
    assert (actual[1] == 0).all()
    weights = torch.randn(3, 6)
    gradients = [torch.autograd.grad((m * weights).sum(), embedding.weight)[0] for m in (actual, by_lookup())]
    torch.testing.assert_close(*gradients)


def test_the_sparse_gradient_is_that_of_the_whole_table(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    def backward(model: TinyBertModel) -> None:
        for row in range(3):
            texts = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            model(**texts).pooler_output.square().sum().backward()

    dense, model = build(config), build(config)
    backward(dense)
    expected = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
    gradient = SparseEmbeddingGradient(model.get_input_embeddings())
    kinds: list[bool] = []
    model.get_input_embeddings().weight.register_hook(lambda grad: kinds.append(grad.is_sparse))
    for _ in range(2):  # the second step must not see the first one's
        backward(model)
        gradient.finish()
        for name, parameter in model.named_parameters():
            if name in expected:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)
        model.zero_grad()
        gradient.clear()
    assert kinds == [True] * 6, "this test would be vacuous: no gradient was sparse"
    gradient.finish()
    assert (model.get_input_embeddings().weight.grad == 0).all()


def test_an_accelerators_gradient_stays_dense_and_no_step_is_no_gradient() -> None:
    assert not nn.Embedding(5, 2, device="meta").sparse
    elsewhere = nn.Embedding(5, 2, device="meta")
    SparseEmbeddingGradient(elsewhere)
    assert not elsewhere.sparse
    here = nn.Embedding(5, 2)
    gradient = SparseEmbeddingGradient(here)
    assert here.sparse
    gradient.finish()
    gradient.clear()
    assert here.weight.grad is None
