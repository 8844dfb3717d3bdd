"""Stage one: tell classes of texts, or of pairs of texts, apart."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Split, describe_data, encode_labels, hold_out, label_names, read_columns, report_labels
from ..kernels import CpuKernels
from ..measures import classification_measures
from ..modeling_tinybert import TinyBertForSequenceClassification
from ..pipeline_tinybert import cut_texts
from .arguments import SentimentArguments
from .sampler import build_sampler
from .stage import Stage, load_start

EVALUATION_BATCH_SIZE = 64


class SentimentStage(Stage):
    """Texts and their classes. It reads them, and loads the model that training starts from."""

    name, unit, best_measure = "sentiment", "texts", "accuracy"
    texts_per_row = 1

    def __init__(self, arguments: SentimentArguments, accelerator: Accelerator, checkpoint: Path | None) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        with accelerator.main_process_first():
            self.data, self.names = load_examples(arguments)
        start = load_start(arguments, accelerator, checkpoint, self.data.train)
        start.config.id2label = dict(enumerate(self.names))
        start.config.label2id = {name: i for i, name in enumerate(self.names)}
        self.tokenizer, self.max_length = start.tokenizer, start.config.max_position_embeddings
        set_seed(arguments.seed)
        self.model = start.load(TinyBertForSequenceClassification)
        self.sampler = build_sampler(arguments, accelerator, len(self.data.train))

    def batch(self, rows: list[int], step: int) -> dict[str, Tensor]:
        read = [self.data.train[row] for row in rows]
        labels = torch.tensor([row["label"] for row in read])
        return tokenize(self.tokenizer, read, self.max_length) | {"labels": labels}

    def backward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with CpuKernels(training=True, num_tokens=0):
            loss = model(**batch).loss
            self.accelerator.backward(loss)
        return loss.detach()

    @torch.inference_mode()
    def evaluate(self, model: PreTrainedModel) -> dict[str, float]:
        """Accuracy and F1, each process classifying its share of the rows."""
        model.eval()
        rows = list(self.data.evaluation)
        predictions: list[int] = []
        with self.accelerator.split_between_processes(rows) as share:
            for start in range(0, len(share), EVALUATION_BATCH_SIZE):
                batch = tokenize(self.tokenizer, share[start : start + EVALUATION_BATCH_SIZE], self.max_length)
                inputs = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
                predictions += model(**inputs).logits.argmax(dim=-1).tolist()
        # accelerate (1.12 at least) gives a process for which there is no row the last one again: it is cut off.
        predictions = gather_object(predictions)[: len(rows)]
        return classification_measures([row["label"] for row in rows], predictions)

    def facts(self) -> dict[str, Any]:
        sizes = {"train_rows": len(self.data.train), "eval_rows": len(self.data.evaluation)}
        return {"data": describe_data(self.arguments.data), **sizes, "labels": self.names}


def load_examples(arguments: SentimentArguments) -> tuple[Split, list[str]]:
    """Rows with the columns `text`, perhaps `text_pair`, and `label`; and the names of the labels."""
    columns = dict(zip(("text", "text_pair"), arguments.text_columns, strict=False))
    flags = dict.fromkeys(columns, "text_columns") | {"label": "label_column"}
    columns["label"] = arguments.label_column
    read: Callable[..., Dataset] = partial(read_columns, columns=columns, flags=flags, **arguments.reading)
    train = read(arguments.data, split=arguments.data_split)
    report_labels(train, describe_data(arguments.data))
    names = label_names(train)
    train = encode_labels(train, names, describe_data(arguments.data))
    if source := arguments.evaluation_source:
        return Split(train, encode_labels(read(source[0], split=source[1]), names, describe_data(source[0]))), names
    return hold_out(train, arguments.eval_size, arguments.seed, by=["text"]), names


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int) -> dict[str, Tensor]:
    """Rows to one padded batch; a pair that is too long loses the end of its longer text."""
    texts = cut_texts((row["text"] for row in rows), max_length)
    pairs = cut_texts((row["text_pair"] for row in rows), max_length) if "text_pair" in rows[0] else None
    return dict(tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt"))
