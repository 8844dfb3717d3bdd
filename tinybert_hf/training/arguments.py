"""The settings of a training run, as flags of the commands and as arguments in Python.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Group, Parameter

from ..data_arguments import DATA, Data, DataArguments
from ..errors import InputError

MODEL = Parameter(group=Group("Model", sort_key=2))
SCHEDULE = Parameter(group=Group("Schedule", sort_key=3))
NEGATIVES = Parameter(group=Group("Loss and negatives", sort_key=4))
MEMORY = Parameter(group=Group("Memory", sort_key=5))
OUTPUT = Parameter(group=Group("Output", sort_key=6))

# Those of `transformers.get_scheduler` that need no settings of their own.
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]

Auto = Literal["auto"]  # chosen by the number of rows (`sampler`)
ABOVE_ZERO = (
    *("eval_size", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps"),
    *("num_train_epochs", "learning_rate", "max_grad_norm", "early_stopping_patience", "temperature"),
)


@dataclass(kw_only=True)
class TrainingArguments(DataArguments):
    """What both stages share. Each stage adds its columns and its defaults."""

    data: Annotated[Data, DATA] = field(default_factory=list)
    """Training data: Hub ids, files or folders, one or several. An epoch reads one as often as it is named."""
    eval_data: Annotated[Data | None, DATA] = None
    """Data to measure on. By default, a split or some rows of --data."""
    eval_split: Annotated[str | None, DATA] = None
    """Split of a Hub data set or a folder to measure on. none holds rows out, as is done for a single file."""
    eval_size: Annotated[int | None, DATA] = None
    """Rows to hold out without --eval_data and --eval_split. By default a tenth: at least 10, at most 1,000."""

    model: Annotated[str | None, MODEL] = None
    """Model folder or Hub id to start from: one of ours, or a BERT, RoBERTa, XLM-RoBERTa,
    CamemBERT or DistilBERT encoder (such as sentence-transformers/all-MiniLM-L6-v2). By default, weights are random."""
    config_overrides: Annotated[str | None, MODEL] = None
    """Changes to the default configuration, as name=value,name=value (in a recipe, a mapping). With another
    encoder as --model: fewer num_hidden_layers or max_position_embeddings, or other dropout."""
    tokenizer_data: Annotated[list[str] | None, MODEL] = None
    """Data that a new model's tokenizer learns from. By default --data. In stage one, add stage two's data."""

    num_train_epochs: Annotated[float | Auto, SCHEDULE] = 3.0
    """Passes over the training data. auto: one, or more if one has fewer than 30 steps."""
    max_steps: Annotated[int, SCHEDULE] = -1
    """Number of optimizer steps. If above 0, it replaces --num_train_epochs."""
    per_device_train_batch_size: Annotated[int | Auto, SCHEDULE] = 32
    """Rows in a batch of each process. auto: 256, or fewer for small data, so that a pass has 4 steps."""
    gradient_accumulation_steps: Annotated[int, SCHEDULE] = 1
    """Batches whose gradients are added up for one step. In stage two, each batch still has only its own negatives."""
    learning_rate: Annotated[float, SCHEDULE] = 1e-4
    """Peak of the learning rate."""
    embedding_learning_rate: Annotated[float | None, SCHEDULE] = None
    """Peak of the learning rate of the token embedding. By default --learning_rate."""
    lr_scheduler_type: Annotated[Schedule, SCHEDULE] = "linear"
    """How the learning rate changes after the warm-up."""
    warmup_ratio: Annotated[float, SCHEDULE] = 0.1
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    weight_decay: Annotated[float, SCHEDULE] = 0.01
    """Weight decay of AdamW. Biases and norms have none."""
    max_grad_norm: Annotated[float, SCHEDULE] = 1.0
    """Gradients above this norm are scaled down to it."""
    save_steps: Annotated[float, SCHEDULE] = 500
    """Steps between two evaluations; below 1, a share of all steps. Each saves a checkpoint. Best and last are kept."""
    early_stopping_patience: Annotated[int | None, SCHEDULE] = None
    """Stop after this many evaluations in a row without a better result. By default all steps are made."""
    seed: Annotated[int, SCHEDULE] = 0
    """Seed of the weights, the order of rows, dropout and held-out rows."""

    output_dir: Annotated[str, OUTPUT] = ""
    """Folder for the model, the checkpoints and the summary."""
    resume_from_checkpoint: Annotated[str | None, OUTPUT] = None
    """Checkpoint folder to continue from. auto: the last one in --output_dir, if there is any."""
    logging_steps: Annotated[int, OUTPUT] = 10
    """Steps between two reports of the loss."""
    report_to: Annotated[str, OUTPUT] = "tensorboard"
    """A tracker that accelerate supports, or none. Its files go to --output_dir."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Path):  # as Python has them; the summary takes texts
                setattr(self, name, str(value))
            if name in ("data", "documents", "eval_data") and isinstance(value, list) and len(value) == 1:
                setattr(self, name, value[0] if isinstance(value[0], str) else value)
        for name in ABOVE_ZERO:
            if (value := getattr(self, name, None)) not in (None, "auto") and value <= 0:
                raise InputError(f"--{name} must be above 0, got {value}.")
        if self.lr_scheduler_type not in (known := get_args(Schedule)):
            raise InputError(f"--lr_scheduler_type must be one of {', '.join(known)}, got {self.lr_scheduler_type!r}.")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"--warmup_ratio must be between 0 and 1, got {self.warmup_ratio}.")
        if self.model and self.tokenizer_data:
            raise InputError(
                f"--tokenizer_data is for the tokenizer of a new model, and --model {self.model} brings its own. "
                "Leave one of them out."
            )

    @property
    def evaluation_source(self) -> tuple[Data, str] | None:
        """Data and split to measure on; None where rows are to be held out of the training data.

        A single file has one split, which is trained on: measuring on it again would measure nothing.
        """
        split = None if self.eval_split == "none" else self.eval_split
        if self.eval_data is not None:
            return self.eval_data, split or "train"
        if split is None or not isinstance(self.data, str) or os.path.isfile(os.path.expanduser(self.data)):
            return None
        return self.data, split


@dataclass(kw_only=True)
class SentimentArguments(TrainingArguments):
    """Stage one. The defaults are the full recipe."""

    data: Annotated[Data, DATA] = field(default_factory=lambda: ["stanfordnlp/sst2"])
    eval_split: Annotated[str | None, DATA] = "validation"
    text_columns: Annotated[list[str], DATA] = field(default_factory=lambda: ["sentence"])
    """The column of the text, or the two columns of a pair of texts."""
    label_column: Annotated[str, DATA] = "label"
    """The column of the class."""
    output_dir: Annotated[str, OUTPUT] = "outputs/sentiment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.text_columns) not in (1, 2):
            raise InputError(f"--text_columns takes one column or two, got {' '.join(self.text_columns)}.")


@dataclass(kw_only=True)
class RetrievalArguments(TrainingArguments):
    """Stage two. The defaults are the full recipe."""

    data: Annotated[Data, DATA] = field(default_factory=lambda: ["sentence-transformers/natural-questions"])
    query_column: Annotated[str, DATA] = "query"
    """The column of the query."""
    answer_column: Annotated[str, DATA] = "answer"
    """The column of the text that answers it."""
    unfold_answers: Annotated[bool, DATA] = False
    """Where the answer column holds lists, make one pair with each answer."""
    documents: Annotated[Data | None, DATA] = None
    """Texts in place of --data. In every epoch, queries are cut from their titles, headings or first sentences."""
    text_column: Annotated[str, DATA] = "text"
    """With --documents: the column of the text."""
    title_column: Annotated[str | None, DATA] = None
    """With --documents: the column of the title, if there is one."""

    temperature: Annotated[float, NEGATIVES] = 0.05
    """Cosine similarities are divided by it before the softmax."""
    negative_columns: Annotated[list[str] | None, NEGATIVES] = None
    """Columns of wrong answers that look right (hard negatives)."""
    mined_negatives: Annotated[int, NEGATIVES] = 0
    """Negatives that the model finds for each query in every epoch: the wrong answers that it ranks highest."""
    matryoshka_dims: Annotated[list[int] | None, NEGATIVES] = None
    """Also train the first so many dimensions, such as 64 128 256, to rank on their own, so that users may cut the
    embeddings (Kusupati et al. 2022)."""

    query_prompt: Annotated[str | None, MODEL] = None
    """Text that the model gets before every query, such as 'query: '. By default that of --model, if any."""
    document_prompt: Annotated[str | None, MODEL] = None
    """Text that it gets before every other text, such as 'passage: '. By default that of --model, if any."""
    teacher: Annotated[str | None, MODEL] = None
    """Folder or Hub id of a SentenceTransformer or AutoModel, whose token embeddings a new model starts with."""

    activation_budget_tokens: Annotated[int, MEMORY] = 16_384
    """Number of tokens whose activations are kept (0.3 MB each in the recipe full). Other texts are encoded twice
    (gradient caching). This takes less memory and more time. The gradient is the same."""

    output_dir: Annotated[str, OUTPUT] = "outputs/retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.documents is not None and (self.negative_columns or self.mined_negatives):
            raise InputError(
                "--documents makes new queries in every epoch, and --negative_columns and --mined_negatives need fixed "
                "ones. Leave them out."
            )
        for name in ("mined_negatives", "activation_budget_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, got {getattr(self, name)}.")
        if self.teacher and self.model:
            raise InputError(
                f"--teacher {self.teacher} gives a new model its embeddings of the tokens, and --model {self.model} has its "
                "own. Leave one of them out."
            )
