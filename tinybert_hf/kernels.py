"""Faster arithmetic for the encoder on a CPU: what the package adds to the plain model of `modeling_tinybert.py`.

`CpuKernels` replaces two functions of torch while it is entered: linear layers and dropout. Outputs and
gradients stay those of plain torch, up to rounding; dropout draws other masks. Each replacement is tried once on a tiny
case. Where it is missing or computes something else, plain torch does the work, and the log says so. On other devices
nothing is replaced.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

# Tokens that make up for the time that packing the weights takes (docs/decisions.md, D42).
LEAST_TOKENS_TO_PACK = 2_048


class CpuKernels(TorchFunctionMode):
    """While entered, a CPU computes linear layers and dropout by the kernels of this file.

    Args:
        training: also replace dropout.
        num_tokens: tokens that will pass through the model before its weights change. From `LEAST_TOKENS_TO_PACK` on,
            weights are packed. None counts the tokens that pass, and packs when there have been so many.

    It may be entered again and again. Weights that changed in between are packed anew where torch has counted the change.
    A fused optimizer (of torch 2.13) changes weights without counting it, so training makes a new one for each step.
    """

    def __init__(self, training: bool, num_tokens: int | None = None) -> None:
        super().__init__()
        self.training, self.num_tokens = training, num_tokens
        self.num_seen: dict[nn.Parameter, int] = {}
        self.packed: dict[tuple[nn.Parameter, torch.dtype, bool], tuple[int, Tensor]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear:
            return self._linear(*args, **kwargs)
        if self.training and function is functional.dropout:
            return dropout(*args, **kwargs)
        return function(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None or not isinstance(weight, nn.Parameter) or input.device.type != "cpu":
            return functional.linear(input, weight, bias)
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        fits = autocast or input.dtype == dtype  # else it meets torch's own error
        if not fits or not self._pays_to_pack(weight, input) or not can_pack(dtype):
            return functional.linear(input, weight, bias)
        return PackedLinear.apply(input.to(dtype), weight, bias, self)

    def _pays_to_pack(self, weight: nn.Parameter, states: Tensor) -> bool:
        if self.num_tokens is not None:
            return self.num_tokens >= LEAST_TOKENS_TO_PACK
        seen = self.num_seen.get(weight, 0)
        self.num_seen[weight] = seen + states.numel() // states.shape[-1]
        return seen >= LEAST_TOKENS_TO_PACK

    def multiply(self, states: Tensor, weight: nn.Parameter, bias: Tensor | None, transposed: bool) -> Tensor:
        """(..., in) -> (..., out) with a weight of (out, in), packed at its first use; `transposed` goes the other way."""
        key = weight, states.dtype, transposed
        version = 0 if weight.is_inference() else weight._version
        if key not in self.packed or self.packed[key][0] != version:
            matrix = weight.detach().to(states.dtype)
            num_rows = states.numel() // states.shape[-1]
            packed = torch.ops.mkldnn._reorder_linear_weight(matrix.t() if transposed else matrix, num_rows)
            self.packed[key] = version, packed
        return multiply_packed(states, self.packed[key][1], bias)


def multiply_packed(states: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product with a weight in its own layout; the operator that torch.compile uses on CPUs."""
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


class PackedLinear(torch.autograd.Function):
    """`torch.nn.functional.linear` by packed weights.

    Plain torch lays the weights out anew for every product. That of the weight's gradient has nothing to pack.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: nn.Parameter, bias: Tensor, kernels: CpuKernels) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.kernels = kernels
        return kernels.multiply(states, weight, bias.to(states.dtype), transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            ctx.kernels.multiply(gradient, weight, None, transposed=True) if needs_states else None,
            (rows.t() @ states.flatten(0, -2)).to(weight.dtype) if needs_weight else None,
            rows.sum(dim=0).to(weight.dtype) if needs_bias else None,
            None,
        )


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed weights give the products of plain torch here; tried once for each type.

    The two operators are private to torch, so that any release may drop or change them.
    """
    if "AVX" not in torch.backends.cpu.get_cpu_capability() or dtype not in (torch.float32, torch.bfloat16):
        return False  # nobody has measured others
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 5, 8), (6, 8), (6,)))
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        product = multiply_packed(states, torch.ops.mkldnn._reorder_linear_weight(weight, 15), bias)
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        expected = functional.linear(states, weight, bias).float()
        same = torch.allclose(product.float(), expected, rtol=tolerance, atol=tolerance)
        reason = "" if same else "they compute something else"
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on with all its backends
    if reason:
        logger.info(
            "Packed weights of this torch (%s) are not used: %s. Encoding is slower.", torch.__version__, reason
        )
    return not reason


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` in an eighth of its time on a CPU in bf16, and a third in fp32.

    torch draws one number for each element, on one core. Here numpy draws as many random bits as the elements have, from
    a seed of torch's. So the probability is a multiple of 2^-15 in bf16 (0.1 becomes 0.100006) and of 2^-31 in fp32.
    """
    if not training or not 0 < p < 1 or input.device.type != "cpu" or not input.is_floating_point():
        return functional.dropout(input, p, training, inplace)
    masked = input * dropout_mask(input.shape, p, input.dtype)
    return input.copy_(masked) if inplace else masked


def dropout_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """Zeros, and 1 / (1 - `probability`) where a value is kept."""
    bits = 8 * dtype.itemsize
    quarter = 2 ** (bits - 2)
    num_kept = round((1 - probability) * 2 * quarter)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() * bits // 64))
    mask = torch.from_numpy(words.view(f"int{bits}"))[: shape.numel()].view(shape)
    # All in place: new memory would cost more than the arithmetic.
    mask >>= 1  # uniform in [-quarter, quarter)
    mask -= num_kept - quarter
    mask >>= bits - 1  # every bit set for the `num_kept` lowest numbers, none for the others
    mask &= torch.tensor(2 * quarter / num_kept, dtype=dtype).view(mask.dtype)
    return mask.view(dtype)


def mean_of_words(embedding: nn.Embedding, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T) ids, padded on the right -> (B, H): the mean of each text's rows of the table.

    It takes a tenth of the time of looking the rows up first. A text without tokens is zero.
    """
    lengths = attention_mask.sum(dim=1)
    return functional.embedding_bag(
        input_ids[attention_mask.bool()], embedding.weight, lengths.cumsum(0) - lengths, mode="mean"
    )


class SparseEmbeddingGradient:
    """The gradient of a token embedding on a CPU, added up row by row.

    torch would make and add a zero-filled gradient of the whole table (92 MB at full size) in every backward pass.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        embedding.sparse = embedding.weight.device.type == "cpu"
        self.weight = embedding.weight
        self.total: Tensor | None = None  # made at the first use, on the device of that time
        self.weight.register_post_accumulate_grad_hook(self._add)

    def _add(self, weight: Tensor) -> None:
        gradient = weight.grad
        if gradient is None or not gradient.is_sparse:
            return
        if self.total is None:
            self.total = torch.zeros_like(weight)
        self.total.index_add_(0, gradient._indices()[0], gradient._values())
        weight.grad = None

    def finish(self) -> None:
        """Hand the sum over as `weight.grad`, for one optimizer step."""
        if self.total is not None:
            self.weight.grad = self.total

    def clear(self) -> None:
        """After the step: back to zero, in place."""
        if self.total is not None:
            self.total.zero_()
