"""Stage two: train the encoder to match a query to its answer, with in-batch negatives.

    accelerate launch train_retrieval.py --model outputs/sentiment        # the full recipe: Natural Questions
    accelerate launch train_retrieval.py recipes/small_retrieval.yaml     # minutes on a CPU, on the bundled data
    accelerate launch train_retrieval.py --data faq.csv --query_column question --answer_column reply \\
        --output_dir outputs/faq
"""

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_hf import TinyBertModel
from tinybert_hf.arguments import TrainingArguments, parse_arguments
from tinybert_hf.data import Split, hold_out, load_data, select_columns
from tinybert_hf.evaluation import evaluate_pairs
from tinybert_hf.gradients import cached_backward
from tinybert_hf.losses import MultipleNegativesRankingLoss, distillation_loss
from tinybert_hf.pipeline_tinybert import group_by_length, pad_batch
from tinybert_hf.search import encode_by_processes
from tinybert_hf.teacher import Teacher
from tinybert_hf.tokenization import tokenize_columns
from tinybert_hf.training import Stage, Trainer, load_start, run_stage


@dataclass
class RetrievalArguments(TrainingArguments):
    """Stage two; the defaults are the full recipe."""

    data: str = field(
        default="sentence-transformers/natural-questions",
        metadata={"help": "Training data: a Hub id, a file or a folder."},
    )
    query_column: str = field(default="query", metadata={"help": "The column of the query."})
    answer_column: str = field(default="answer", metadata={"help": "The column of the text that answers it."})
    negative_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of texts that look like the answer and are not."}
    )
    temperature: float = field(
        default=0.05, metadata={"help": "Cosine similarities are divided by it before the softmax."}
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={
            "help": "Train the first so many dimensions of the embeddings to rank on their own too, so that users may cut "
            "them (Kusupati et al. 2022); as 64 128 256."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "A folder or Hub id of an encoder (any SentenceTransformer or AutoModel) whose ranking of each batch is "
            "learned too. It embeds every training text once; the embeddings are kept for later runs."
        },
    )
    distillation_weight: float = field(
        default=1.0,
        metadata={"help": "With --teacher: what its loss counts beside the ranking loss, which counts 1."},
    )
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Texts of like length pass through the encoder together, at most so many tokens with padding; "
            "default: 512 on a CPU, 16384 elsewhere. It changes the speed, not the gradient."
        },
    )
    graph_tokens: int = field(
        default=16_384,
        metadata={
            "help": "Of a batch, at most so many tokens keep what the backward pass needs (0.4 MB each at full size); "
            "the others pass through the encoder twice. It changes memory and speed, not the gradient."
        },
    )
    warm_start_epochs: float = field(
        default=0.0,
        metadata={
            "help": "First, so many passes over the data train the token embedding alone, as an encoder without layers; "
            "new layers then start as the identity. It takes a small part of the time of the other epochs."
        },
    )
    warm_start_learning_rate: float = field(
        default=1e-2, metadata={"help": "Peak for the token embedding during the warm start."}
    )
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={
            "help": "Batches whose gradients are added up before a step. It does not enlarge the set of negatives: "
            "each batch is ranked on its own."
        },
    )
    output_dir: str = field(
        default="outputs/retrieval", metadata={"help": "Folder for the model, checkpoints and the summary."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch_tokens is not None and self.micro_batch_tokens <= 0:
            raise ValueError(f"--micro_batch_tokens must be above 0, got {self.micro_batch_tokens}.")
        if self.warm_start_epochs < 0:
            raise ValueError(f"--warm_start_epochs must not be negative, got {self.warm_start_epochs}.")
        if self.warm_start_learning_rate <= 0:
            raise ValueError(
                f"--warm_start_learning_rate must be above 0, got {self.warm_start_learning_rate}."
            )
        if self.distillation_weight <= 0:
            raise ValueError(f"--distillation_weight must be above 0, got {self.distillation_weight}.")
        if self.graph_tokens < 0:
            raise ValueError(f"--graph_tokens must not be negative, got {self.graph_tokens}.")


def main() -> None:
    arguments = parse_arguments(RetrievalArguments, __doc__)
    run_stage(arguments, build_trainer)


def build_trainer(
    arguments: RetrievalArguments, accelerator: Accelerator, checkpoint: Path | None
) -> Trainer:
    ranking_loss = MultipleNegativesRankingLoss(arguments.temperature)
    with accelerator.main_process_first():
        data = load_pairs(arguments)
    source, config, tokenizer = load_start(arguments, accelerator, checkpoint, data.train)
    if arguments.warm_start_epochs and config.pooling != "mean":
        raise ValueError(
            f"--warm_start_epochs {arguments.warm_start_epochs} trains the mean of token embeddings, and this encoder pools "
            f"by {config.pooling!r}. Leave the warm start out, or set pooling: mean in --config_overrides."
        )
    dims = [config.hidden_size, *(arguments.matryoshka_dims or [])]
    if wrong := [dim for dim in dims if not 1 <= dim <= config.hidden_size]:
        raise ValueError(
            f"--matryoshka_dims must be from 1 to {config.hidden_size}, the width of the encoder, got {wrong[0]}."
        )
    set_seed(arguments.seed)
    model = TinyBertModel.from_pretrained(source, config=config) if source else TinyBertModel(config)

    with accelerator.main_process_first():
        train = tokenize_columns(data.train, tokenizer, config.max_position_embeddings)
        started = time.perf_counter()
        teacher = Teacher(arguments.teacher, data.train) if arguments.teacher else None
        teacher_seconds = time.perf_counter() - started
    micro_batch_tokens = arguments.micro_batch_tokens or (512 if accelerator.device.type == "cpu" else 16_384)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = [
            "query",
            "answer",
            *(f"negative_{i}" for i in range(len(arguments.negative_columns or []))),
        ]
        texts = [row[name] for name in columns for row in rows]
        ids = torch.tensor([row[f"{name}_id"] for name in columns for row in rows])
        groups = group_by_length([len(text) for text in texts], micro_batch_tokens)
        return {
            "micro_batches": [pad_batch([texts[i] for i in group], config.pad_token_id) for group in groups],
            "order": torch.tensor([i for group in groups for i in group]).argsort(),
            "query_ids": ids[: len(rows)],
            "answer_ids": ids[len(rows) :],
        }

    def backward(model: nn.Module, batch: dict[str, Any], step: int) -> Tensor:
        encoder = accelerator.unwrap_model(model)
        warm_start = step < trainer.warm_start_steps
        encoder.layers.requires_grad_(not warm_start)

        def embed(texts: dict[str, Tensor]) -> Tensor:
            if warm_start:
                return encoder.embed_words(**texts)
            return model(**texts, pooled_only=True).pooler_output

        def compute_loss(embeddings: Tensor) -> Tensor:
            embeddings = embeddings[batch["order"]]  # queries, answers, negatives
            queries, answers = embeddings.tensor_split([len(batch["query_ids"])])
            ids = batch["query_ids"], batch["answer_ids"]
            losses = [ranking_loss(queries[:, :dim], answers[:, :dim], *ids) for dim in dims]
            if teacher:
                targets = teacher.look_up(batch["query_ids"]), teacher.look_up(batch["answer_ids"])
                distill = partial(distillation_loss, temperature=arguments.temperature)
                losses += [
                    arguments.distillation_weight * distill(queries[:, :dim], answers[:, :dim], *targets)
                    for dim in dims
                ]
            return torch.stack(losses).sum() / len(dims)

        micro_batches, graph_tokens = batch["micro_batches"], arguments.graph_tokens
        if warm_start or not len(encoder.layers):
            # Without layers there are no activations to save, and one pass over the table is the fastest.
            micro_batches, graph_tokens = [join_micro_batches(micro_batches)], sys.maxsize
        return cached_backward(accelerator, embed, micro_batches, compute_loss, graph_tokens)

    def evaluate(model: PreTrainedModel) -> dict[str, float]:
        embed = partial(encode_by_processes, model, tokenizer)
        pairs = data.evaluation
        return evaluate_pairs(pairs["query"][:], pairs["answer"][:], embed, arguments.temperature)

    facts = {
        "data": arguments.data,
        "train_rows": len(data.train),
        "eval_rows": len(data.evaluation),
        "texts_per_row": len(data.train.column_names),
        "teacher_seconds": round(teacher_seconds, 1),
    }
    stage = Stage(
        "retrieval",
        collate,
        backward,
        evaluate,
        best_measure="nDCG@10",
        data=facts,
        warm_start_epochs=arguments.warm_start_epochs,
        warm_start_learning_rate=arguments.warm_start_learning_rate,
    )
    trainer = Trainer(arguments, accelerator, model, tokenizer, train, stage)
    return trainer


def join_micro_batches(micro_batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All texts as one micro-batch, padded with zeros to the length of the longest."""
    width = max(batch["input_ids"].shape[1] for batch in micro_batches)

    def widen(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    names = micro_batches[0].keys()
    return {name: torch.cat([widen(batch[name]) for batch in micro_batches]) for name in names}


def load_pairs(arguments: RetrievalArguments) -> Split:
    """Rows with the columns `query`, `answer`, and `negative_0`, `negative_1`, ... where there are any."""
    columns = {"query": arguments.query_column, "answer": arguments.answer_column}
    flags = {"query": "query_column", "answer": "answer_column"}
    for i, column in enumerate(arguments.negative_columns or []):
        columns[f"negative_{i}"], flags[f"negative_{i}"] = column, "negative_columns"

    def read(data: str, split: str) -> Dataset:
        rows = load_data(data, arguments.data_config, split, arguments.data_revision)
        return select_columns(rows, columns, f"{data} ({split})", flags)

    train = read(arguments.data, arguments.data_split)
    if source := arguments.evaluation_source:
        return Split(train, read(*source))
    return hold_out(train, arguments.eval_size, arguments.seed, by=["query", "answer"])


if __name__ == "__main__":
    main()
