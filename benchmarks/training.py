"""Training: pairs a second and peak memory, beside sentence-transformers.

    python -m benchmarks.training --size small
    python -m benchmarks.training --size full --batch_sizes 64 256 --pairs_per_run 256

Both sides start from the same weights and take the same rows in the same batches, with dropout 0.1, fused AdamW, the same
schedule and a temperature of 0.05. Ours is the trainer of `tinybert train retrieval`; theirs SentenceTransformerTrainer, once with
transformers' `BertModel`, which computes the same and is what one trains with that library, once with our encoder's own
code, and with

- plain: MultipleNegativesRankingLoss;
- cached: CachedMultipleNegativesRankingLoss with the fastest of several mini-batch sizes, found beforehand;
- cached, sorted: the same with a batch sampler of ours, which hands it the rows of each batch longest first, so that its
  mini-batches hold texts of like length. The library has no such sampler; a user would have to know and write it.

Timed are optimizer steps, collating included, after one step to warm up; evaluation, saving and loading are not. We
tokenise before the first step, they in every step: the time to tokenise the timed rows is added to ours.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import (
    DATA,
    BenchmarkArguments,
    alternate,
    bf16_in_hardware,
    make_model,
    median,
    parse_arguments,
    report,
    run_alone,
    spread,
    table,
)
from benchmarks.training_runs import Job, Peer, train_ours, train_theirs
from tinybert_hf.training import RetrievalArguments

CACHED = [Peer("BertModel"), Peer("our encoder"), Peer("our encoder", longest_first=True)]


@dataclass
class TrainingBenchmark(BenchmarkArguments):
    """Training beside sentence-transformers."""

    batch_sizes: list[int] = field(default_factory=lambda: [64, 256, 1024], metadata={"help": "Pairs of a batch."})
    precisions: list[str] = field(
        default_factory=lambda: ["fp32", "bf16"] if bf16_in_hardware() else ["fp32"],
        metadata={"help": "fp32 or bf16; default: both where the hardware has bf16."},
    )
    pairs_per_run: int = field(
        default=1024, metadata={"help": "Timed pairs of a run, at least one batch; the same for every batch size."}
    )
    tuning_pairs: int = field(
        default=128, metadata={"help": "Pairs of the one batch on which each mini-batch setting is tried."}
    )
    activation_budget_tokens: list[int] = field(
        default_factory=lambda: [RetrievalArguments().activation_budget_tokens, 0],
        metadata={"help": "A row of ours for each; the first is what the others are compared with."},
    )
    data: str = field(default=DATA, metadata={"help": "Pairs with the columns query and answer."})


def main() -> None:
    arguments = parse_arguments(TrainingBenchmark, __doc__)
    with TemporaryDirectory() as scratch:
        report(arguments, *measure_training(arguments, Path(scratch)))


def measure_training(arguments: TrainingBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The tables, and the numbers behind them."""
    alone = partial(run_alone, threads=arguments.threads)
    folder = str(alone(make_model, arguments.size, scratch / "model"))
    numbers: dict[str, Any] = {"exactness": compare_losses(arguments, scratch)}
    rows: list[list[Any]] = []
    tried: list[list[Any]] = []
    for precision in arguments.precisions:
        job = Job(folder, arguments.data, arguments.tuning_pairs, 1, precision)
        peers = [Peer("BertModel"), Peer("our encoder")]
        for cached in CACHED:
            settings = [cached._replace(mini_batch_size=size) for size in (4, 16, 64)]
            settings += [cached._replace(mini_batch_num_tokens=tokens) for tokens in (512, 2048)]
            tuning = alternate({peer: partial(alone, train_theirs, job, peer) for peer in settings}, repeats=1)
            seconds = {peer: runs[0]["seconds"] for peer, runs in tuning.items() if runs}
            peers.append(min(seconds, key=lambda peer: seconds[peer]))
            tried += [[precision, peer, f"{job.batch_size / took:,.1f}"] for peer, took in seconds.items()]
        for batch_size in arguments.batch_sizes:
            steps = max(1, arguments.pairs_per_run // batch_size)
            job = Job(folder, arguments.data, batch_size, steps, precision)
            sides = {
                f"ours, --activation_budget_tokens {tokens}": partial(alone, train_ours, job, tokens)
                for tokens in arguments.activation_budget_tokens
            } | {f"sentence-transformers, {peer}": partial(alone, train_theirs, job, peer) for peer in peers}
            results = alternate(sides, arguments.repeats)
            numbers[f"{precision}, batch {batch_size}"] = results
            rows += [[precision, batch_size, *row] for row in compare(results, batch_size * steps)]
    header = ["precision", "batch", "", "pairs/s", "ours is faster by", "peak memory, MiB"]
    exactness = "Losses with dropout 0, the same batches: " + numbers["exactness"]["text"]
    return [
        exactness,
        table(header, rows),
        f"Mini-batch settings tried, a batch of {arguments.tuning_pairs}, one run each:",
        table(["precision", "sentence-transformers", "pairs/s"], tried),
    ], numbers


def compare(results: dict[str, list[dict[str, Any]]], pairs: int) -> list[list[str]]:
    """A row for each side: pairs a second, how much slower than the first side, peak memory."""
    rows, first = [], 0.0
    for name, runs in results.items():
        if not runs:
            rows.append([name, "ran out of memory", "", ""])
            continue
        rates = [pairs / run["seconds"] for run in runs]
        first = first or median(rates)
        peak = median(run["peak_mib"] for run in runs)
        rows.append([name, spread(rates), f"{first / median(rates):.2f}", f"{peak:,.0f}"])
    return rows


def compare_losses(arguments: TrainingBenchmark, scratch: Path) -> dict[str, Any]:
    """Three steps of a few pairs on both sides without dropout; the first loss comes from the very same weights.

    The weights are drawn wider than usual: otherwise all texts start so alike that every batch has the loss of chance.
    """
    alone = partial(run_alone, threads=arguments.threads)
    overrides = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    folder = str(alone(make_model, arguments.size, scratch / "no-dropout", overrides))
    job = Job(folder, arguments.data, batch_size=16, steps=2, precision="fp32")
    losses = {"ours": alone(train_ours, job, 0)["losses"]}
    for peer in (Peer("BertModel"), Peer("our encoder"), Peer("our encoder", mini_batch_size=4)):
        losses[str(peer)] = alone(train_theirs, job, peer)["losses"]
    text = "; ".join(f"{name} {', '.join(f'{loss:.6f}' for loss in values)}" for name, values in losses.items())
    return {"losses": losses, "text": text}


if __name__ == "__main__":
    main()
