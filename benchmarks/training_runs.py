"""One training run of one side, for `training.py` and `matmul_share.py`: what is timed, and on which rows."""

import os
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from benchmarks.measure import load_sentence_transformer, peak_mib
from tinybert_hf.training import RetrievalArguments
from tinybert_hf.training.pairs import load_pairs
from tinybert_hf.training.retrieval import build_stage
from tinybert_hf.training.sampler import StepSampler
from tinybert_hf.training.setup import build_accelerator
from tinybert_hf.training.trainer import Trainer

LEARNING_RATE = 1e-4

# As ours: each query has to find its answer, and each answer its query.
DIRECTIONS: Any = ("query_to_doc", "doc_to_query")


Encoder = Literal["BertModel", "our encoder"]


class Peer(NamedTuple):
    """What sentence-transformers trains, `BertModel` of transformers or our encoder, and how it embeds a batch: at once, or
    in mini-batches of so many texts or tokens."""

    encoder: Encoder
    mini_batch_size: int | None = None
    mini_batch_num_tokens: int | None = None
    longest_first: bool = False

    def __str__(self) -> str:
        sizes = {"texts": self.mini_batch_size, "tokens": self.mini_batch_num_tokens}
        cached = ", ".join(f"{size} {name}" for name, size in sizes.items() if size)
        how = (f"cached, {cached}" if cached else "plain") + (", sorted" if self.longest_first else "")
        return f"{self.encoder}, {how}"

    def folder(self, model: str) -> str:
        return f"{model}/bert" if self.encoder == "BertModel" else model


class Job(NamedTuple):
    """One run of one side."""

    folder: str
    data: str
    batch_size: int
    steps: int
    precision: str

    def arguments(self, output_dir: str, activation_budget: int) -> RetrievalArguments:
        return RetrievalArguments(
            data=self.data,
            eval_data=self.data,
            model=self.folder,
            output_dir=output_dir,
            max_steps=1 + self.steps,
            per_device_train_batch_size=self.batch_size,
            activation_budget_tokens=activation_budget,
            learning_rate=LEARNING_RATE,
            warmup_ratio=0.0,
            logging_steps=1,
            report_to="none",
        )

    def batches(self, num_rows: int) -> list[list[int]]:
        """A batch to warm up, as memory costs much when it is used for the first time, then the timed ones: which rows those
        are depends on their number alone."""
        (order,) = StepSampler(num_rows, num_rows).micro_batches(0)
        timed = [order[i * self.batch_size :][: self.batch_size] for i in range(self.steps)]
        return [order[-self.batch_size :], *timed]


class FixedBatches(Sampler[list[int]]):
    """The given batches; remembers when each was asked for."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            self.times.append(time.perf_counter())
            yield batch


class FixedSteps(StepSampler):
    """Steps of the given batches; remembers when each was asked for."""

    def __init__(self, batches: list[list[int]], num_rows: int) -> None:
        super().__init__(num_rows, len(batches[0]))
        self.batches = batches
        self.times: list[float] = []

    def micro_batches(self, step: int) -> list[list[int]]:
        self.times.append(time.perf_counter())
        return [self.batches[step]]


def train_ours(job: Job, activation_budget: int) -> dict[str, Any]:
    """Seconds of the timed steps, peak memory up to their end, and the loss of every step."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if job.precision == "bf16" else "no"
    with TemporaryDirectory() as output_dir:
        arguments = job.arguments(output_dir, activation_budget)
        accelerator = build_accelerator(arguments)
        stage = build_stage(arguments, accelerator, None)
        rows = load_pairs(arguments).train
        steps = FixedSteps(job.batches(len(rows)), len(rows))
        ends: list[tuple[float, float]] = []

        def evaluate(model: Any) -> dict[str, float]:  # the loop's first call after the last step
            ends.append((time.perf_counter(), peak_mib()))
            return {stage.best_measure: 0.0}

        stage.evaluate = evaluate  # type: ignore[method-assign]  # it is not timed
        stage.sampler = steps
        summary = Trainer(arguments, accelerator, stage).train()
    end, peak = ends[-1]
    started = time.perf_counter()
    timed = rows.select([i for batch in steps.batches[1:] for i in batch])
    for name in timed.column_names:
        stage.tokenizer(timed[name][:], truncation=True)
    tokenising = time.perf_counter() - started
    losses = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    return {"seconds": end - steps.times[1] + tokenising, "peak_mib": peak, "losses": losses}


def train_theirs(job: Job, peer: Peer) -> dict[str, Any]:
    """The same through SentenceTransformerTrainer."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from transformers import TrainerCallback

    model = load_sentence_transformer(peer.folder(job.folder))
    losses: list[float] = []
    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), peak_mib()))

    if peer.mini_batch_size or peer.mini_batch_num_tokens:
        loss: torch.nn.Module = CachedMultipleNegativesRankingLoss(
            model,
            mini_batch_size=peer.mini_batch_size or 32,
            mini_batch_num_tokens=peer.mini_batch_num_tokens,
            directions=DIRECTIONS,
            partition_mode="per_direction",
        )
    else:
        loss = MultipleNegativesRankingLoss(model, directions=DIRECTIONS, partition_mode="per_direction")
    loss.register_forward_hook(lambda module, inputs, output: losses.append(output.item()))

    def sampler(dataset: Dataset, **kwargs: Any) -> FixedBatches:
        batches = job.batches(len(dataset))
        if peer.longest_first:
            batches = [sorted(batch, key=lambda i: -len(dataset[i]["answer"])) for batch in batches]
        # The loader reads a batch ahead: one more at the end, so that as many are collated as are timed.
        return FixedBatches([*batches, batches[1]])

    with TemporaryDirectory() as output_dir:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=output_dir,
            max_steps=1 + job.steps,
            per_device_train_batch_size=job.batch_size,
            batch_sampler=sampler,  # type: ignore[arg-type]  # any sampler of batches will do
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            optim="adamw_torch_fused",
            bf16=job.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = load_pairs(job.arguments(output_dir, 0)).train
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Clock()]
        ).train()
    return {"seconds": ends[-1][0] - ends[0][0], "peak_mib": ends[-1][1], "losses": losses}
