"""Configuration of a training run: one dataclass, read from a YAML recipe, from flags, or from both."""

import copy
import difflib
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from .configuration_tinybert import TinyBertConfig


@dataclass
class TrainingArguments:
    """What both training stages share; each stage adds its columns and its defaults."""

    data: str = field(default="", metadata={"help": "Training data: a Hub id, a file or a folder."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    data_split: str = field(default="train", metadata={"help": "Split to train on."})
    data_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a Hub data set."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Data to measure on; default: --data."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of a Hub data set or a folder to measure on; none, or a single file: rows are held out."
        },
    )
    eval_size: int = field(
        default=1000, metadata={"help": "Rows held out where there is neither --eval_data nor --eval_split."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Model folder or Hub id to start from, ours or any BERT encoder (as "
            "sentence-transformers/all-MiniLM-L6-v2); default: random weights."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Without --model: what differs from the default TinyBertConfig, as name=value,name=value "
            "(in a recipe, a mapping). With a BERT as --model: fewer num_hidden_layers or max_position_embeddings, dropout."
        },
    )
    tokenizer_data: list[str] | None = field(
        default=None,
        metadata={"help": "Without --model: data whose texts the tokenizer learns from; default: --data."},
    )
    output_dir: str = field(
        default="", metadata={"help": "Folder for the model, checkpoints and the summary."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint folder, or auto: the last one in --output_dir, if there is any."},
    )
    seed: int = field(default=0, metadata={"help": "Of weights, order, dropout and held-out rows."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training data."})
    max_steps: int = field(
        default=-1, metadata={"help": "Optimizer steps, instead of epochs, where above 0."}
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Rows of a batch on each process."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches whose gradients are added up before a step."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak of the schedule."})
    embedding_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak for the token embedding, of which a step sees few rows; default: the same."},
    )
    warmup_ratio: float = field(
        default=0.1,
        metadata={"help": "Share of the steps that raise the learning rate from 0; then it falls to 0."},
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's, not on biases and norms."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to this norm."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between two reports of the loss."})
    save_steps: int = field(
        default=500,
        metadata={"help": "Steps between two evaluations; each saves a checkpoint. Best and last stay."},
    )
    report_to: str = field(
        default="tensorboard",
        metadata={"help": "A tracker that accelerate knows, or none. Curves go to --output_dir."},
    )

    def __post_init__(self) -> None:
        for name in (
            "eval_size",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
            "num_train_epochs",
            "learning_rate",
            "max_grad_norm",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"--warmup_ratio must be between 0 and 1, got {self.warmup_ratio}.")
        if self.model and self.tokenizer_data:
            raise ValueError(
                f"--tokenizer_data is for the tokenizer of a new model, and --model {self.model} brings its own. "
                "Leave one of them out."
            )

    @property
    def evaluation_source(self) -> tuple[str, str] | None:
        """Data and split to measure on; None where rows are to be held out of the training data.

        A single file has one split, which is trained on: measuring on it again would measure nothing.
        """
        split = None if self.eval_split == "none" else self.eval_split
        if self.eval_data:
            return self.eval_data, split or "train"
        if split is None or Path(self.data).expanduser().is_file():
            return None
        return self.data, split


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the example commands as they are written, and shows the defaults that say something."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Where a command reads its input: an unusable one ends it with a message instead of a traceback."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


Arguments = TypeVar("Arguments", bound=TrainingArguments)


def parse_arguments(cls: type[Arguments], description: str, argv: Sequence[str] | None = None) -> Arguments:
    """Read `[recipe.yaml] [--flag value ...]`; a flag wins over the recipe. Exits with status 2 on a wrong argument."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        cls,
        description=description,
        formatter_class=HelpFormatter,
        usage="%(prog)s [recipe.yaml] [--flag value ...]",
        epilog="A recipe is a YAML file of the same names, without the dashes; a flag wins over the recipe.",
        allow_abbrev=False,
    )
    try:
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            arguments = recipe_flags(cls, arguments[0]) + arguments[1:]
        (parsed,) = parser.parse_args_into_dataclasses(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return parsed


def override_config(config: TinyBertConfig, overrides: str | None) -> TinyBertConfig:
    """A copy of `config` with what `--config_overrides` asks, as name=value,name=value.

    Raises: ValueError: if a name is unknown, or the values do not fit together.
    """
    changed = copy.deepcopy(config)
    try:
        if overrides:
            changed.update_from_string(overrides)
        return TinyBertConfig.from_dict(changed.to_dict())  # checks the values together
    except ValueError as error:
        raise ValueError(f"--config_overrides {overrides}: {error}") from error


def recipe_flags(cls: type[TrainingArguments], path: str) -> list[str]:
    """A YAML recipe as command-line flags, so that both are checked by one parser.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no mapping, or has a name that is no flag or a name without a value.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold 'name: value' lines, got {type(recipe).__name__}.")
    known = [f.name for f in fields(cls)]
    flags: list[str] = []
    for name, value in recipe.items():
        if name not in known:
            guess = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {guess[0]}?" if guess else ""
            raise ValueError(f"{path}: {name!r} is no training argument.{hint} See --help.")
        if value is None:
            raise ValueError(f"{path}: {name} has no value; give it one, or remove the line.")
        flags += [f"--{name}", *_flag_values(value)]
    return flags


def _flag_values(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [",".join(f"{name}={item}" for name, item in value.items())]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value)]
