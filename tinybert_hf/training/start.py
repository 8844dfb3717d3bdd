"""Where training begins: a checkpoint, another model, or random weights."""

import logging
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset

from .. import auto  # noqa: F401 - registers the models
from ..configuration_tinybert import TinyBertConfig
from ..convert_bert import Start, load_encoder, override_config
from ..data import iterate_texts, load_data
from ..loading import load_tokenizer
from ..tokenization import save_tokenizer, train_tokenizer
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)


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
