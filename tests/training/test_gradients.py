"""Gradient caching has the gradient of the plain backward pass: with dropout, in parts, in bf16, on two processes.

python -m pytest tests/training/test_gradients.py -q
"""

import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from accelerate import Accelerator
from shared_fixtures import forget_accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from two_processes import run_two_processes

from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf.kernels import LEAST_TOKENS_TO_PACK, CpuKernels, SparseEmbeddingGradient, can_pack
from tinybert_hf.losses import MultipleNegativesRankingLoss
from tinybert_hf.pipeline_tinybert import pad_batch
from tinybert_hf.training.gradients import (
    OUTPUTS_SHARE,
    average_gradients,
    cached_backward,
    linear_layers,
    share_budget,
)

ALL = 10**6  # tokens: every graph is kept
REMEMBERED = 110  # tokens: of every micro-batch below, the linear layers' outputs are
BATCH_SIZE = 6


def build_model(dropout: float = 0.3, pooling: str = "mean") -> TinyBertModel:
    torch.manual_seed(0)
    config = TinyBertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        residual_initializer_range=0.1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        pooling=pooling,
    )
    return TinyBertModel(config).train()


def micro_batches(groups: list[int], seed: int = 1) -> list[dict[str, Tensor]]:
    """Random texts of 3 to 12 tokens, `groups` of them together."""
    generator = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        length = int(torch.randint(3, 13, (), generator=generator))
        return torch.randint(4, 50, (length,), generator=generator).tolist()

    return [pad_batch([text() for _ in range(size)], pad_token_id=3) for size in groups]


def batch_loss(embeddings: Tensor) -> Tensor:
    """6 queries, their answers and 6 explicit negatives."""
    ids = torch.arange(len(embeddings)) + 100 * (
        torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    )
    parts = embeddings.tensor_split([BATCH_SIZE]), ids.tensor_split([BATCH_SIZE])
    return MultipleNegativesRankingLoss()(*parts[0], *parts[1])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cached(
    accelerator: Accelerator,
    model: nn.Module,
    activation_budget: int,
    kernels: CpuKernels | nullcontext[None] | None = None,
    seed: int = 2,
) -> tuple[Tensor, Any]:
    """Loss and gradients of three micro-batches of 18 texts, through `cached_backward`."""
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    torch.manual_seed(seed)

    def embed(texts: dict[str, Tensor]) -> Tensor:
        with kernels or nullcontext():
            return prepared(**texts).pooler_output

    loss = cached_backward(accelerator, embed, micro_batches([4, 5, 9]), batch_loss, activation_budget)
    return loss, gradients(model)


def plain(model: nn.Module, seed: int = 2) -> tuple[Tensor, Any]:
    torch.manual_seed(seed)
    parts = [model(**texts).pooler_output for texts in micro_batches([4, 5, 9])]
    loss = batch_loss(torch.cat(parts))
    loss.backward()
    return loss.detach(), gradients(model)


PLAIN, UNPACKED, PACKED = "plain torch", "kernels", "kernels with packed weights"


def kernels(kind: str, dtype: torch.dtype = torch.float32) -> CpuKernels | nullcontext[None]:
    """With what the linear layers, the dropout and the attention of a step are computed."""
    if kind == PACKED and not can_pack(dtype):
        pytest.skip(f"this processor or this torch has no packed weights of {dtype}")
    tokens = {UNPACKED: 0, PACKED: LEAST_TOKENS_TO_PACK}
    return nullcontext() if kind == PLAIN else CpuKernels(training=True, num_tokens=tokens[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PLAIN, UNPACKED, PACKED])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("activation_budget", [0, 60, 180, ALL])
def test_the_gradient_is_the_plain_one_with_dropout(
    accelerator: Accelerator, activation_budget: int, pooling: str, kind: str
) -> None:
    model = build_model(pooling=pooling)
    calls: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, texts: calls.append(len(texts["input_ids"])), with_kwargs=True
    )
    loss, actual = cached(accelerator, model, activation_budget, kernels(kind))
    again = {0: [4, 5, 9], 60: [4, 5, 9], 180: [4, 5], ALL: []}
    assert calls == [4, 5, 9] + again[activation_budget]
    with kernels(kind):
        expected_loss, expected = plain(build_model(pooling=pooling))
    torch.testing.assert_close(loss, expected_loss)
    assert actual.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    with kernels(kind):
        other_loss, _ = plain(build_model(pooling=pooling), seed=3)
    assert other_loss != expected_loss, "this test would be vacuous: no dropout"


def test_the_random_numbers_after_a_step_do_not_depend_on_what_was_replayed(accelerator: Accelerator) -> None:
    cached(accelerator, build_model(), 0)
    after_replay = torch.rand(4)
    cached(accelerator, build_model(), ALL)
    assert torch.equal(torch.rand(4), after_replay)


@pytest.mark.parametrize("kind", [PLAIN, UNPACKED, PACKED])
@pytest.mark.parametrize("activation_budget", [0, REMEMBERED])
def test_in_bf16_the_gradient_is_the_plain_one_of_bf16(activation_budget: int, kind: str) -> None:
    chosen = kernels(kind, torch.bfloat16)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        model = build_model()
        loss, actual = cached(accelerator, model, activation_budget, chosen)
        reference = build_model()
        with kernels(kind, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(2)
            parts = [reference(**texts).pooler_output for texts in micro_batches([4, 5, 9])]
        expected_loss = batch_loss(torch.cat(parts).float())
        with kernels(kind, torch.bfloat16):
            expected_loss.backward()
    finally:
        forget_accelerator()
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-3, atol=0)
    for name, gradient in gradients(reference).items():
        error = (actual[name] - gradient).norm() / gradient.norm()
        assert error < 0.02, f"{name}: {error}"
    with kernels(PLAIN if kind == PLAIN else UNPACKED):
        exact = plain(build_model())[1]["layers.0.mlp.up.weight"]
    assert (actual["layers.0.mlp.up.weight"] - exact).norm() / exact.norm() > 1e-4, "vacuous: nothing was rounded"


def test_accumulation_divides_each_batch(accelerator: Accelerator) -> None:
    _, once = cached(accelerator, build_model(), 0)
    accelerator.gradient_accumulation_steps = 4
    _, quarter = cached(accelerator, build_model(), 0)
    for name, gradient in once.items():
        torch.testing.assert_close(4 * quarter[name], gradient)


def test_sparse_gradients_are_those_of_the_whole_table(accelerator: Accelerator) -> None:
    _, expected = cached(accelerator, build_model(), 0)
    model = build_model()
    rows = SparseEmbeddingGradient(model.get_input_embeddings())
    for _ in range(2):  # the second step must not see the first one's
        cached(accelerator, model, 0)
        rows.finish()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
        model.zero_grad()
        rows.clear()


def flops(accelerator: Accelerator, activation_budget: int, kind: str) -> tuple[int, int]:
    """FLOPs of the linear layers' kernel, and of other products of two matrices."""
    packed = kind == PACKED
    kernel = torch.ops.mkldnn._linear_pointwise if packed else torch.ops.aten.addmm

    def pointwise_flops(states: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * states.numel() * weight[0]

    with FlopCounterMode(display=False, custom_mapping={kernel: pointwise_flops} if packed else {}) as counter:
        cached(accelerator, build_model(), activation_budget, kernels(kind))
    counts = counter.get_flop_counts()["Global"]
    return counts[kernel], counts[torch.ops.aten.mm]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PLAIN, UNPACKED, PACKED])
def test_linear_layers_compute_once_where_their_outputs_are_remembered(accelerator: Accelerator, kind: str) -> None:
    kernels(kind)
    forward, backward = flops(accelerator, ALL, PLAIN)
    # The gradients of the inputs are products with packed weights too.
    inputs = forward if kind == PACKED else 0
    once = forward + inputs, backward - inputs
    assert flops(accelerator, ALL, kind) == once
    assert flops(accelerator, REMEMBERED, kind) == once
    assert flops(accelerator, 0, kind) == (once[0] + forward, once[1])


# ---- Memory ----


class Activations:
    """Bytes that autograd keeps for backward passes, at the most. (A process's own memory also shows the allocator's
    holes; benchmarks/training.py measures that.)"""

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()  # of each storage
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Activations.Saved":
        storage = tensor.untyped_storage()
        self.users[storage.data_ptr()] += 1
        if self.users[storage.data_ptr()] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        saved = self.Saved(tensor)
        weakref.finalize(saved, self.free, storage.data_ptr(), storage.nbytes())
        return saved

    def free(self, storage: int, size: int) -> None:
        self.users[storage] -= 1
        if not self.users[storage]:
            self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [256, 1024])  # the loss takes 512 queries at a time
def test_a_batch_of_any_size_takes_the_memory_of_64(accelerator: Accelerator, batch_size: int) -> None:
    def peak(batch_size: int, activation_budget: int) -> int:
        model = build_model()
        texts = torch.randint(4, 50, (2 * batch_size, 16)).tolist()
        ids = torch.arange(2 * batch_size).tensor_split([batch_size])
        activations = Activations()
        with torch.autograd.graph.saved_tensors_hooks(activations.pack, lambda saved: saved.tensor):
            cached_backward(
                accelerator,
                lambda texts: model(**texts).pooler_output,
                [pad_batch(texts[i : i + 128], 3) for i in range(0, len(texts), 128)],
                lambda embeddings: MultipleNegativesRankingLoss()(*embeddings.tensor_split([batch_size]), *ids),
                activation_budget,
            )
        assert activations.now == 0
        return activations.peak

    assert peak(batch_size, 2048) < 1.1 * peak(64, 2048)
    assert peak(256, ALL) > 3 * peak(64, ALL), "this test would be vacuous: plain graphs do not grow"


def test_what_is_kept_takes_no_more_than_allowed() -> None:
    sizes = [50, 40, 30, 20, 10]
    for activation_budget in range(sum(sizes) + 1):
        forgotten, replayed = share_budget(sizes, activation_budget)
        assert forgotten <= replayed
        remembered, kept = sum(sizes[forgotten:replayed]), sum(sizes[replayed:])
        assert OUTPUTS_SHARE * remembered + kept <= activation_budget
    assert share_budget(sizes, 0) == (5, 5)
    assert share_budget(sizes, 75) == (0, 5), "outputs of all 150 tokens"
    assert share_budget(sizes, 90) == (0, 3), "and 30 tokens whole"
    assert share_budget(sizes, 150) == (0, 0)


class LinearOutputs(TorchDispatchMode):
    """Bytes of what linear layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self.nbytes += output.nbytes if function in linear_layers() else 0
        return output


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_outputs_of_linear_layers_take_their_share_of_a_graph_at_most(dropout: float) -> None:
    config = TinyBertConfig(
        vocab_size=100, num_hidden_layers=1, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model = TinyBertModel(config).train()
    model.set_attn_implementation("eager")  # as the trainer does in bf16

    def sizes(num_texts: int) -> Tensor:
        """Bytes of what autograd saves, weights included, and of the outputs."""
        texts = torch.randint(4, 100, (num_texts, 64))
        outputs, activations = LinearOutputs(), Activations()
        with (
            kernels(UNPACKED),
            outputs,
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(activations.pack, lambda saved: saved.tensor),
        ):
            kept = model(texts).pooler_output
        assert kept.requires_grad
        return torch.tensor([activations.peak, outputs.nbytes])

    graph, remembered = (sizes(32) - sizes(16)).tolist()
    assert 0.1 * graph < remembered < OUTPUTS_SHARE * graph


# ---- Two processes ----


def worker(rank: int, folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    model = build_model(dropout=0)
    groups = [[4, 5, 9], [1] * 18][rank]  # 3 micro-batches on one process, 18 on the other
    collectives: list[int] = []
    all_reduce = torch.distributed.all_reduce

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        collectives.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = count
    loss = cached_backward(
        accelerator,
        lambda texts: model(**texts).pooler_output,
        micro_batches(groups, seed=10 + rank),
        batch_loss,
        activation_budget=30,
    )
    average_gradients(accelerator, model)
    torch.save((loss, gradients(model), collectives), f"{folder}/{rank}.pt")
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_with_unequal_micro_batches_have_the_gradient_of_the_joint_batch(tmp_path: Path) -> None:
    first, second = run_two_processes(worker, tmp_path)

    model = build_model(dropout=0)
    halves = [
        torch.cat([model(**texts).pooler_output for texts in micro_batches(groups, seed=10 + rank)])
        for rank, groups in enumerate([[4, 5, 9], [1] * 18])
    ]
    queries, others = zip(*(half.tensor_split([BATCH_SIZE]) for half in halves), strict=True)
    answers, negatives = zip(*(part.tensor_split([BATCH_SIZE]) for part in others), strict=True)
    joint = torch.cat((*answers, *negatives))
    loss = MultipleNegativesRankingLoss()(
        torch.cat(queries), joint, torch.arange(2 * BATCH_SIZE), torch.arange(100, 100 + len(joint))
    )
    loss.backward()

    torch.testing.assert_close((first[0] + second[0]) / 2, loss.detach())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    for _, actual, collectives in (first, second):
        assert [size for size in collectives if size == num_parameters] == [num_parameters], "one all-reduce a step"
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)
