"""Where training begins: a checkpoint, another model, or random weights."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .. import auto  # noqa: F401 - registers the models
from ..configuration_tinybert import TinyBertConfig
from ..convert_bert import first_position, load_bert_tokenizer, load_config, load_weights, read_config
from ..data import iterate_texts, load_data
from ..errors import InputError
from ..loading import load_model, load_tokenizer, loading
from ..modeling_tinybert import TinyBertPreTrainedModel
from ..tokenization import save_tokenizer, train_tokenizer
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)

# What --config_overrides may change of a BERT: what no weight depends on, and how much of the encoder is kept.
OPEN_OF_BERT = {
    *("num_hidden_layers", "max_position_embeddings", "pooling"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
}


@dataclass
class Start:
    """A configuration, the tokenizer that belongs to it, and weights, if they are not random."""

    config: TinyBertConfig
    tokenizer: PreTrainedTokenizerBase
    source: str | None = None  # the folder or Hub id; None where the weights are random
    weights: dict[str, Tensor] | None = None  # where they are not those of the files

    def load(self, model_class: type[TinyBertPreTrainedModel]) -> TinyBertPreTrainedModel:
        """The model. A classifier that the weights have not, or for other labels, is random."""
        if self.source is None:
            return model_class(self.config)
        options = {"config": self.config, "state_dict": self.weights}
        return load_model(model_class, self.source, None if self.weights else self.source, ("classifier.",), **options)


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


def load_encoder(source: str, overrides: str | None = None) -> Start:
    """The encoder of a folder or Hub id: a TinyBERT, or a BERT that becomes one, as `overrides` ask.

    Raises: InputError: if there is no such model, or `overrides` contradict its configuration or weights.
    """
    with loading(source):
        config = load_config(source)
    if config.model_type != TinyBertConfig.model_type:
        return load_bert(source, config, overrides)
    own, asked = config.to_dict(), override_config(config, overrides).to_dict()
    if other := sorted(f"{name}={own[name]}" for name, value in asked.items() if value != own[name]):
        raise InputError(
            f"--config_overrides {overrides}: --model {source} is a tinybert model, which brings its own configuration "
            f"({', '.join(other)}). Leave one of them out."
        )
    return Start(config, load_tokenizer(source, config.vocab_size), source)


def load_bert(source: str, bert_config: Any, overrides: str | None) -> Start:
    """A BERT encoder, also a SentenceTransformer's, as a TinyBERT that computes the same.

    Of `overrides`, fewer `num_hidden_layers` keep that many layers, evenly spaced from the first to the last; fewer
    `max_position_embeddings` the first positions.
    """
    tokenizer = load_bert_tokenizer(source, bert_config, None)
    with loading(source):
        whole = read_config(source, bert_config, tokenizer, None)
    config = override_config(whole, overrides)
    changed = {name for name, value in config.to_dict().items() if value != whole.to_dict()[name]}
    if closed := sorted(changed - OPEN_OF_BERT):
        raise InputError(
            f"--config_overrides {overrides}: the weights of --model {source} fix {', '.join(closed)}. "
            f"Only {', '.join(sorted(OPEN_OF_BERT))} can be changed."
        )
    for name, least, most in (
        ("num_hidden_layers", 1, bert_config.num_hidden_layers),
        ("max_position_embeddings", 3, bert_config.max_position_embeddings - first_position(bert_config)),
    ):
        if not least <= getattr(config, name) <= most:
            limits = f"{name} must be from {least} to {most} for --model {source}."
            raise InputError(f"--config_overrides {overrides}: {limits}")
    tokenizer.model_max_length = config.max_position_embeddings
    return Start(config, tokenizer, source, weights=load_weights(source, bert_config, config, None))


def override_config(config: TinyBertConfig, overrides: str | None) -> TinyBertConfig:
    """A copy of `config` with what `--config_overrides` asks, as name=value,name=value."""
    changed = copy.deepcopy(config)
    if overrides and not all("=" in part for part in overrides.split(",")):
        raise InputError(f"--config_overrides {overrides}: expected name=value,name=value.")
    try:
        if overrides:
            changed.update_from_string(overrides)
        return TinyBertConfig.from_dict(changed.to_dict())  # checks the values together
    except ValueError as error:
        raise InputError(f"--config_overrides {overrides}: {error}") from error
