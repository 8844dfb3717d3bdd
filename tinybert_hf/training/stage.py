"""What a training stage brings to the loop, and what it starts from."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import auto  # noqa: F401 - registers the models
from ..configuration_tinybert import TinyBertConfig
from ..convert_bert import Start, load_encoder, override_config
from ..data import Split, iterate_texts, load_data
from ..loading import load_tokenizer
from ..tokenization import save_tokenizer, train_tokenizer
from .arguments import TrainingArguments
from .sampler import StepSampler

logger = logging.getLogger(__name__)


class Stage(ABC):
    """Data, batches, loss and measures of a stage. It knows nothing of the loop.

    The loop calls `prepare`, then `batch` and `backward` for each micro-batch of a step, and `evaluate` now and then.
    Everything is a function of the step, so that a run can go on at any of them.
    """

    name: ClassVar[str]  # of the summary file
    unit: ClassVar[str]  # what a row is called
    best_measure: ClassVar[str]  # the higher, the better: by it the best checkpoint is chosen

    data: Split
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: StepSampler
    texts_per_row: int

    def prepare(self, model: PreTrainedModel, step: int) -> None:  # noqa: B027 - most stages have nothing to prepare
        """Do what the batches of a step need; all processes call it together."""

    @abstractmethod
    def batch(self, rows: list[int], step: int) -> Any:
        """Rows of the training data -> tensors, on the CPU."""

    @abstractmethod
    def backward(self, model: nn.Module, batch: Any) -> Tensor:
        """Add the batch's gradients to the parameters'; returns the mean loss, without graph."""

    @abstractmethod
    def evaluate(self, model: PreTrainedModel) -> dict[str, float]:
        """Measures on the held-out data."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """About the data, for the summary: at least `data`, `train_rows`, `eval_rows`."""

    def finish(self, folder: Path) -> dict[str, Any]:
        """Settle what the finished model's folder says besides its weights; returns facts for the summary."""
        return {}

    def baselines(self) -> dict[str, dict[str, float]]:
        """What else was measured on the held-out data: system -> measures."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of the stage."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - as `state_dict`
        """Go on with what `state_dict` gave."""


def load_start(
    arguments: TrainingArguments, accelerator: Accelerator, checkpoint: Path | None, dataset: Dataset
) -> Start:
    """The checkpoint, or `--model`, or a new model, whose tokenizer learns from `--tokenizer_data` or from `dataset`."""
    if checkpoint:
        return load_encoder(str(checkpoint))
    if arguments.model:
        return load_encoder(arguments.model, arguments.config_overrides)
    config = override_config(TinyBertConfig(), arguments.config_overrides)
    if accelerator.is_main_process:
        written = arguments.reading["written"]
        sources = [load_data(data, written=written) for data in arguments.tokenizer_data or []] or [dataset]
        logger.info("Training the tokenizer.")
        texts = (text for source in sources for text in iterate_texts(source))
        tokenizer = train_tokenizer(texts, config.vocab_size, config.max_position_embeddings)
        save_tokenizer(tokenizer, arguments.output_dir)
    accelerator.wait_for_everyone()
    tokenizer = load_tokenizer(arguments.output_dir, config.vocab_size)
    config.vocab_size = len(tokenizer)
    return Start(config, tokenizer)
