"""How a step's gradients come about: through the embeddings of a batch of any size, and over all processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

MicroBatch = dict[str, Tensor]

# What the outputs of a pass's linear layers take of the memory of its graph, at the most: with dropout it is less
# (EXPERIMENTS.md).
OUTPUTS_SHARE = 0.5


def cached_backward(
    accelerator: Accelerator,
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    compute_loss: Callable[[Tensor], Tensor],
    graph_tokens: int,
) -> Tensor:
    """Add the gradient of a loss over all texts of a batch, in the memory that a part of them takes.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983): embed the texts, take the loss and its gradient with respect
    to the embeddings, then send each micro-batch's share of that gradient back through the encoder. Micro-batches whose
    activations were not kept pass through the encoder a second time, with the random numbers of the first, so that the
    gradient is that of the plain backward pass, dropout included. As far as the memory goes, that second pass has the
    linear layers' outputs from the first one (selective recomputation, Korthikanti et al. 2022, arXiv:2205.05198): a
    fraction of the activations, and nearly all of the arithmetic.

    Args:
        accelerator: scales for mixed precision and accumulation, as `accelerator.backward` does.
        embed: micro-batch -> (texts, H).
        micro_batches: each with `input_ids`, (texts, tokens).
        compute_loss: (all texts, H) fp32 -> mean loss. It may gather over processes.
        graph_tokens: what may be kept of the first pass, in the memory that the activations of a token take; padding
            counts. `share_memory` says which micro-batches keep what.

    Returns: the loss, without graph.
    """
    num_forgotten, num_replayed = share_memory(
        [batch["input_ids"].numel() for batch in micro_batches], graph_tokens
    )

    # One autocast context a pass: it casts the weights once, and what it cast without a graph must not be met with one.
    states: list[RandomState] = []
    outputs: list[AbstractContextManager[Any]] = []
    with torch.no_grad(), accelerator.autocast():
        embeddings = []
        for i, batch in enumerate(micro_batches[:num_replayed]):
            states.append(RandomState(accelerator.device))
            outputs.append(nullcontext() if i < num_forgotten else LinearOutputs())
            with outputs[i]:
                embeddings.append(embed(batch))
    with accelerator.autocast():
        embeddings += [embed(batch) for batch in micro_batches[num_replayed:]]

    leaf = torch.cat([part.detach().float() for part in embeddings]).requires_grad_()
    loss = compute_loss(leaf)
    loss.backward()
    assert leaf.grad is not None
    gradients = leaf.grad.split([len(part) for part in embeddings])

    def send_back(part: Tensor, gradient: Tensor) -> None:
        with torch.autocast(accelerator.device.type, enabled=False):
            accelerator.backward((part.float() * gradient).sum())

    # One at a time: autograd would add up the sparse gradients of several by copying all rows for each.
    for gradient in gradients[num_replayed:]:
        send_back(embeddings.pop(num_replayed), gradient)
    with accelerator.autocast():
        for batch, state, remembered, gradient in zip(
            micro_batches, states, outputs, gradients, strict=False
        ):
            with state.replayed(), remembered:
                part = embed(batch)
            send_back(part, gradient)
    return loss.detach()


def share_memory(sizes: Sequence[int], graph_tokens: int) -> tuple[int, int]:
    """Which micro-batches keep what, the last ones first: before their whole graphs, the outputs of all linear layers, as
    those save the most time for their memory.

    Args:
        sizes: tokens of each micro-batch.
        graph_tokens: as `cached_backward` has it.

    Returns: how many keep nothing, and how many do not keep their graph, these included.
    """
    tokens = [sum(sizes[i:]) for i in range(len(sizes) + 1)]  # from the i-th on
    num_forgotten = next(i for i, rest in enumerate(tokens) if OUTPUTS_SHARE * rest <= graph_tokens)
    left = graph_tokens - OUTPUTS_SHARE * tokens[num_forgotten]
    num_replayed = next(i for i, rest in enumerate(tokens) if (1 - OUTPUTS_SHARE) * rest <= left)
    return num_forgotten, num_replayed


class LinearOutputs(TorchDispatchMode):
    """What the linear layers of a forward pass put out: entered once, it remembers; entered again, it hands out what it
    remembers, and no matrix is multiplied. Autograd sees no difference. Layers must not change these outputs in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.replaying = False

    def __torch_dispatch__(
        self, function: OpOverload, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.name() not in ("aten::addmm", "mkldnn::_linear_pointwise"):
            return function(*args, **(kwargs or {}))
        if self.replaying:
            return self.outputs.pop(0)
        self.outputs.append(function(*args, **(kwargs or {})))
        return self.outputs[-1]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.replaying = True


class RandomState:
    """The random state of the CPU and of one device, to repeat what is drawn after it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.modules = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
        self.states = [module.get_rng_state() for module in self.modules]

    def restore(self) -> None:
        for module, state in zip(self.modules, self.states, strict=True):
            module.set_rng_state(state)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the same numbers are drawn again; afterwards it goes on as if nothing had been drawn."""
        before = RandomState(self.device)
        self.restore()
        try:
            yield
        finally:
            before.restore()


class RowGradients:
    """The gradient of a token embedding, added up row by row on a CPU.

    By default every backward pass makes and adds a zero-filled gradient of the whole table, 92 MB at full size, for the
    few hundred rows that a micro-batch sees. An accelerator does that in no time.
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


def average_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one collective call a step.

    DistributedDataParallel's hooks would synchronise in every backward pass, of which the processes need not have
    equally many.
    """
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)
