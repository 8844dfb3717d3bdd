"""Texts to embeddings with the package installed: with the CPU kernels, in the fastest precision, by several processes.

The arithmetic is that of `pipeline_tinybert.py`, which travels with every model.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from . import auto, pipeline_tinybert  # noqa: F401 - auto registers the models
from .convert_bert import load_encoder
from .kernels import CpuKernels
from .modeling_tinybert import TinyBertModel
from .pipeline_tinybert import Encoder, SemanticSearchPipeline
from .words import embed_words, is_words_alone

logger = logging.getLogger(__name__)

# oneDNN reads this before its first use: of how many shapes of input it keeps what it made (docs/promises.md).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
# A forked process has none of the threads among which torch shares its work, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started, and its device."""
    # accelerate takes several processes without an accelerator for single ones unless it is told.
    return PartialState(cpu=not torch.accelerator.is_available())


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, fp32 where it would be emulated or nobody can tell."""
    native = False
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in a torch before 2026
        instructions = ("amx_bf16", "avx512_bf16", "bf16")  # the last on ARM
        native = any(torch.cpu.get_capabilities().get(name) for name in instructions)
    return torch.bfloat16 if native else torch.float32


class KernelEncoder:
    """A `TinyBertModel` whose `pooler_output` the CPU kernels compute; all else is the model's."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kernels = CpuKernels(training=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        if is_words_alone(self.model.config):
            return BaseModelOutputWithPooling(pooler_output=embed_words(self.model, input_ids, attention_mask))
        with self.kernels:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)


def with_kernels(model: Encoder) -> Encoder:
    return cast(Encoder, KernelEncoder(model)) if isinstance(model, TinyBertModel) else model


def encode(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *arguments: Any, **options: Any
) -> Tensor:
    """`pipeline_tinybert.encode` with the CPU kernels; the same arguments."""
    return pipeline_tinybert.encode(with_kernels(model), tokenizer, texts, *arguments, **options)


def encode_stream(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *arguments: Any, **options: Any
) -> Iterator[Tensor]:
    """`pipeline_tinybert.encode_stream` with the CPU kernels; the same arguments."""
    return pipeline_tinybert.encode_stream(with_kernels(model), tokenizer, texts, *arguments, **options)


class SearchPipeline(SemanticSearchPipeline):
    """The pipeline of `load_search_pipeline`."""

    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        return encode(self.model, self.tokenizer, texts, **{**self._forward_params, **options})

    def maxsim(self, *arguments: Any) -> list[list[float]]:
        with CpuKernels(training=False):
            return super().maxsim(*arguments)


def load_search_pipeline(
    model: str | Path, revision: str | None = None, dtype: torch.dtype | None = None
) -> SearchPipeline:
    """`pipeline("semantic-search", model=...)` with the installed package's code instead of the model folder's.

    Args:
        model: a model folder or a Hub id: one of ours, or an encoder of `convert_bert.ENCODERS`.
        dtype: of the weights; None takes bf16 where the hardware has it and fp32 elsewhere.

    Returns: the pipeline, on the accelerator if there is one; under `accelerate launch`, on this process's own.

    Raises: InputError: if there is no such model, it is damaged, or it is neither of ours nor a BERT.
    """
    device = process_state().device
    dtype = dtype or fast_dtype(device)
    logger.info("Encoding with %s in %s.", device, dtype)
    start = load_encoder(str(model), revision=revision)
    encoder = start.load(TinyBertModel, dtype)
    return SearchPipeline(model=encoder.to(device), tokenizer=start.tokenizer, device=device)


def encode_by_processes(
    model: Encoder, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], show_progress_bar: bool = False
) -> Tensor:
    """`encode` with the texts shared out among the processes of `accelerate launch`; each returns all N rows."""
    state = process_state()
    with state.split_between_processes(list(texts)) as share:
        rows = encode(model, tokenizer, share, show_progress_bar=show_progress_bar and state.is_main_process)
    # accelerate (1.12 at least) gives a process for which there is no text the last one again: it is cut off.
    return torch.cat(gather_object([rows]))[: len(texts)]
