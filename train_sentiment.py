"""Stage one: train the encoder to classify texts (sentiment), or pairs of texts (natural language inference).

    accelerate launch train_sentiment.py                                  # the full recipe: SST-2 from the Hub
    accelerate launch train_sentiment.py recipes/small_sentiment.yaml     # minutes on a CPU, on the bundled data
    accelerate launch train_sentiment.py --data reviews.csv --text_columns review --label_column stars \\
        --output_dir outputs/reviews
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_hf import TinyBertForSequenceClassification
from tinybert_hf.arguments import TrainingArguments, parse_arguments
from tinybert_hf.data import Split, encode_labels, hold_out, label_names, load_data, select_columns
from tinybert_hf.evaluation import classification_measures
from tinybert_hf.training import Stage, Trainer, load_start, run_stage


@dataclass
class SentimentArguments(TrainingArguments):
    """Stage one; the defaults are the full recipe."""

    data: str = field(
        default="stanfordnlp/sst2", metadata={"help": "Training data: a Hub id, a file or a folder."}
    )
    eval_split: str | None = field(
        default="validation",
        metadata={
            "help": "Split of a Hub data set or a folder to measure on; none, or a single file: rows are held out."
        },
    )
    text_columns: list[str] = field(
        default_factory=lambda: ["sentence"],
        metadata={"help": "The column of the text, or the two of a pair."},
    )
    label_column: str = field(default="label", metadata={"help": "The column of the class."})
    tokenizer_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Without --model: data whose texts the tokenizer learns from; default: --data. Name stage two's "
            "data here too, so that its words are known."
        },
    )
    output_dir: str = field(
        default="outputs/sentiment", metadata={"help": "Folder for the model, checkpoints and the summary."}
    )


def main() -> None:
    arguments = parse_arguments(SentimentArguments, __doc__)
    run_stage(arguments, build_trainer)


def build_trainer(
    arguments: SentimentArguments, accelerator: Accelerator, checkpoint: Path | None
) -> Trainer:
    with accelerator.main_process_first():
        data, names = load_examples(arguments)
    start = load_start(arguments, accelerator, checkpoint, data.train)
    config, tokenizer = start.config, start.tokenizer
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    set_seed(arguments.seed)
    # A classifier of other labels gives its encoder only.
    model = start.load(TinyBertForSequenceClassification, ignore_mismatched_sizes=True)

    max_length = config.max_position_embeddings

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = tokenize(tokenizer, rows, max_length)
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    def backward(model: nn.Module, batch: dict[str, Tensor], step: int) -> Tensor:
        loss = model(**batch, pooled_only=True).loss
        accelerator.backward(loss)
        return loss.detach()

    def evaluate(model: PreTrainedModel) -> dict[str, float]:
        rows = list(data.evaluation)
        predictions = predict(accelerator, model, tokenizer, rows, max_length)
        return classification_measures([row["label"] for row in rows], predictions)

    facts = {
        "data": arguments.data,
        "train_rows": len(data.train),
        "eval_rows": len(data.evaluation),
        "labels": names,
        "texts_per_row": 1,
    }
    stage = Stage("sentiment", collate, backward, evaluate, best_measure="accuracy", data=facts)
    return Trainer(arguments, accelerator, model, tokenizer, data.train, stage)


def load_examples(arguments: SentimentArguments) -> tuple[Split, list[str]]:
    """Rows with the columns `text`, perhaps `text_pair`, and `label`; and the names of the labels."""
    if len(arguments.text_columns) not in (1, 2):
        raise ValueError(f"--text_columns takes one column or two, got {' '.join(arguments.text_columns)}.")
    columns = dict(zip(("text", "text_pair"), arguments.text_columns, strict=False))
    flags = dict.fromkeys(columns, "text_columns") | {"label": "label_column"}
    columns["label"] = arguments.label_column

    def read(data: str, split: str) -> Dataset:
        rows = load_data(data, arguments.data_config, split, arguments.data_revision)
        return select_columns(rows, columns, f"{data} ({split})", flags)

    train = read(arguments.data, arguments.data_split)
    names = label_names(train)
    train = encode_labels(train, names, arguments.data)
    if source := arguments.evaluation_source:
        return Split(train, encode_labels(read(*source), names, source[0])), names
    return hold_out(train, arguments.eval_size, arguments.seed, by=["text"]), names


def tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int
) -> dict[str, Tensor]:
    """Rows to one padded batch; a pair that is too long loses the end of its longer text."""
    texts = [row["text"] for row in rows]
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    return dict(
        tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    )


@torch.inference_mode()
def predict(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    max_length: int,
    batch_size: int = 64,
) -> list[int]:
    """The most likely class of every row, each process doing its share."""
    model.eval()
    predictions: list[int] = []
    with accelerator.split_between_processes(rows) as share:
        for start in range(0, len(share), batch_size):
            batch = tokenize(tokenizer, share[start : start + batch_size], max_length)
            logits = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()}).logits
            predictions += logits.argmax(dim=-1).tolist()
    return gather_object(predictions)


if __name__ == "__main__":
    main()
