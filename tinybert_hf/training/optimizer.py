"""The optimizer and the schedule of its learning rates."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from .arguments import TrainingArguments


def build_optimizer(model: PreTrainedModel, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), decaying matrices only; the token embedding has its own rate."""
    embedding = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not embedding]
    embedding_learning_rate = arguments.embedding_learning_rate or arguments.learning_rate
    return torch.optim.AdamW(
        [
            {"params": [embedding], "weight_decay": arguments.weight_decay, "lr": embedding_learning_rate},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": arguments.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=arguments.learning_rate,
        fused=True,  # one pass over each tensor: a tenth of the time on a CPU
    )


def build_schedule(optimizer: torch.optim.Optimizer, arguments: TrainingArguments, max_steps: int) -> LambdaLR:
    """The schedule that `transformers` calls `arguments.lr_scheduler_type`, after a linear warm-up."""
    return get_scheduler(arguments.lr_scheduler_type, optimizer, round(arguments.warmup_ratio * max_steps), max_steps)
