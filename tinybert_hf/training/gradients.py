"""A step's gradient: through the embeddings of a batch of any size (gradient caching), and over all processes.

Gradient caching (Gao et al. 2021, arXiv:2101.06983) has three steps:

1. Embed all texts, micro-batch by micro-batch. Most of the activations are forgotten.
2. Take the loss of all embeddings together, and its gradient with respect to each embedding.
3. Send each micro-batch's part of that gradient back through the encoder. A micro-batch whose activations were forgotten
   is embedded a second time for it, with the random numbers of the first time.

So the gradient is that of the plain backward pass, dropout included.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

MicroBatch = dict[str, Tensor]
Embed = Callable[[MicroBatch], Tensor]  # (texts, tokens) -> (texts, H)

# The outputs of a pass's linear layers take this part of the memory of its graph at the most. With dropout it is less.
OUTPUTS_SHARE = 0.5


def cached_backward(
    accelerator: Accelerator,
    embed: Embed,
    micro_batches: Sequence[MicroBatch],
    compute_loss: Callable[[Tensor], Tensor],
    activation_budget: int,
) -> Tensor:
    """Add the gradient of a loss over all texts of a batch to the parameters'; returns the loss, without graph.

    `compute_loss` takes (all texts, H) fp32, and may gather over processes. `activation_budget` is in tokens, padding
    included: of so many the activations may be kept from step 1 to step 3 (`share_budget`).
    """
    sizes = [batch["input_ids"].numel() for batch in micro_batches]
    num_forgotten, num_replayed = share_budget(sizes, activation_budget)

    # Step 1.
    with accelerator.autocast():
        embeddings = [
            embed_twice(embed, batch, remember_outputs=i >= num_forgotten) if i < num_replayed else embed(batch)
            for i, batch in enumerate(micro_batches)
        ]

    # Step 2.
    leaf = torch.cat([part.detach().float() for part in embeddings]).requires_grad_()  # (all texts, H)
    loss = compute_loss(leaf)
    loss.backward()
    assert leaf.grad is not None

    # Step 3. One micro-batch at a time: autograd would add up the sparse gradients of several by copying all rows. Those
    # whose graphs are kept go first, and free them. In one autocast context, weights are cast once for all others.
    parts = list(zip(embeddings, leaf.grad.split([len(part) for part in embeddings]), strict=True))
    with accelerator.autocast():
        for part, gradient in parts[num_replayed:] + parts[:num_replayed]:
            products = part.float() * gradient
            with torch.autocast(accelerator.device.type, enabled=False):
                accelerator.backward(products.sum())
    return loss.detach()


def embed_twice(embed: Embed, batch: MicroBatch, remember_outputs: bool) -> Tensor:
    """(texts, H), computed now and once more in the backward pass, instead of keeping its activations."""
    contexts = partial(create_selective_checkpoint_contexts, linear_layers()) if remember_outputs else noop_context_fn
    return cast(Tensor, checkpoint(embed, batch, use_reentrant=False, context_fn=contexts))


def share_budget(sizes: Sequence[int], activation_budget: int) -> tuple[int, int]:
    """How many of the first micro-batches keep nothing of step 1, and how many do not keep their graph, these included.

    The budget goes first to the outputs of linear layers, which save the most time for their memory, then to whole
    graphs, starting from the last micro-batch. Sizes are in tokens.

    >>> share_budget([50, 40, 30, 20, 10], activation_budget=90)  # outputs of all 150, and the graphs of the last 30
    (0, 3)
    """
    tokens = [sum(sizes[i:]) for i in range(len(sizes) + 1)]  # from the i-th micro-batch on
    num_forgotten = next(i for i, rest in enumerate(tokens) if OUTPUTS_SHARE * rest <= activation_budget)
    left = activation_budget - OUTPUTS_SHARE * tokens[num_forgotten]
    num_replayed = next(i for i, rest in enumerate(tokens) if (1 - OUTPUTS_SHARE) * rest <= left)
    return num_forgotten, num_replayed


def linear_layers() -> list[OpOverload]:
    """The operators whose outputs are worth their memory (Korthikanti et al. 2022, arXiv:2205.05198)."""
    operators = [torch.ops.aten.addmm.default]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        operators.append(torch.ops.mkldnn._linear_pointwise.default)
    return operators


def average_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one collective call a step.

    DistributedDataParallel would synchronise in every backward pass, of which processes need not have equally many.
    """
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = accelerator.reduce(torch.cat(gradients), reduction="mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)
