"""Which share of the machine's matrix-multiply rate training and encoding reach, and how it grows.

    python -m benchmarks.matmul_share --size full --plot benchmarks/matmul_share.png

The rate is the highest that `torch.matmul`, or a linear layer with its weights in the layout of the kernels, as `encode` and
a retrieval step have them, reaches on `SHAPES`, square and tall ones (as many rows as a batch has tokens), measured before
and after everything else; the higher counts. The work is what the encoder's matrix products need for the real tokens. A
token of a text of T tokens takes, in each of the L layers, 2 FLOPs for each weight of the four matrices

    2 (3 H H + H H + 2 H I)     query, key and value; attention's output; the two of the feed-forward (I wide)

and 2 x 2 T H for its products with the T keys and the T values. A training step counts three times that: the backward
pass has two products for each of the forward pass. What is computed beyond it (padding, a second forward pass for cached
gradients, dropout, softmax, the optimizer) takes time and counts nothing; what the program leaves out counts as if it were done.
"""

import json
import random
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.encoding import ENCODERS
from benchmarks.measure import (
    SIZES,
    BenchmarkArguments,
    bf16_in_hardware,
    make_model,
    median,
    parse_arguments,
    report,
    run_alone,
    table,
)
from benchmarks.training_runs import Job, train_ours
from tinybert_hf import TinyBertConfig
from tinybert_hf.kernels import CpuKernels
from tinybert_hf.training import RetrievalArguments

SHAPES = [(n, n, n) for n in (512, 1024, 2048, 4096)] + [
    (rows, width, columns) for rows in (512, 4096) for width, columns in ((768, 2304), (768, 1600), (1600, 768))
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Point(NamedTuple):
    """Texts of one length through a model of one depth; training takes half of them as queries, half as answers."""

    work: str  # "training" or "encoding"
    tokens: int
    texts: int
    layers: int


def forward_flops(config: TinyBertConfig, tokens: int) -> float:
    """FLOPs of the matrix products for each token of a text of so many.

    >>> forward_flops(TinyBertConfig(hidden_size=2, num_attention_heads=1, intermediate_size=3, num_hidden_layers=1), 5)
    96
    """
    hidden, wide = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (2 * (4 * hidden**2 + 2 * hidden * wide) + 4 * tokens * hidden)


def matmul_rates(precision: str, seconds: float) -> dict[str, float]:
    """GFLOP/s of each shape and way: the fastest of the multiplications that fit into its share of the seconds."""
    rates = {}
    dtype, device = DTYPES[precision], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for rows, width, columns in SHAPES:
        states = torch.randn(rows, width, dtype=dtype, device=device)
        linear = torch.nn.Linear(width, columns, dtype=dtype, device=device)
        ways = {"torch.matmul": partial(torch.matmul, states, linear.weight.t()), "nn.Linear": partial(linear, states)}
        for way, multiply in ways.items():
            # 4,096 tokens: weights of fewer rows are packed too, to know the highest rate
            with torch.inference_mode(), CpuKernels(training=False, num_tokens=4096):
                multiply()
                best, end = float("inf"), time.perf_counter() + seconds / len(SHAPES) / len(ways)
                while best == float("inf") or time.perf_counter() < end:
                    started = time.perf_counter()
                    multiply()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    best = min(best, time.perf_counter() - started)
            rates[f"{way} {rows} x {width} x {columns}"] = 2 * rows * width * columns / best / 1e9
    return rates


def make_texts(tokenizer: PreTrainedTokenizerBase, tokens: int, count: int) -> list[str]:
    """Different texts of exactly so many tokens, the two special ones included."""
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isascii() and word.isalpha() and len(word) > 2]
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=tokens - 2)) for _ in range(count)]


def rate(point: Point, folder: str, precision: str, scratch: Path) -> float:
    """GFLOP/s of one point; its real tokens only."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = TinyBertConfig.from_pretrained(folder)
    texts = make_texts(tokenizer, point.tokens, point.texts)
    if {len(ids) for ids in tokenizer(texts)["input_ids"]} != {point.tokens}:
        raise RuntimeError(f"The made-up texts have not {point.tokens} tokens each.")
    flops = forward_flops(config, point.tokens) * point.tokens * point.texts
    if point.work == "encoding":
        encode = ENCODERS[f"ours, {precision}"](folder)
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            encode(texts)
            seconds.append(time.perf_counter() - started)
        return flops / median(seconds[1:]) / 1e9
    pairs = point.texts // 2
    data = scratch / "pairs.jsonl"
    rows = [{"query": f"{text}", "answer": texts[-1 - i]} for i, text in enumerate(texts[:pairs])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = Job(folder, str(data), pairs, 1, precision)
    return 3 * flops / train_ours(job, RetrievalArguments().activation_budget_tokens)["seconds"] / 1e9


@dataclass
class MatmulShareBenchmark(BenchmarkArguments):
    """The share of the matrix-multiply rate."""

    repeats: int = field(default=1, metadata={"help": "Runs of each point; the median counts."})
    lengths: list[int] = field(
        default_factory=lambda: [16, 32, 64, 128, 256, 350], metadata={"help": "Tokens of a text."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [2, 8, 32, 128], metadata={"help": "Pairs of a batch."})
    layers: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Layers of the model."})
    num_texts: list[int] = field(
        default_factory=lambda: [1, 4, 16, 64, 256], metadata={"help": "Texts of a call of encode."}
    )
    matmul_seconds: float = field(default=20.0, metadata={"help": "For each measurement of the machine's rate."})
    plot: str | None = field(default=None, metadata={"help": "A PNG file to draw."})


def main() -> None:
    arguments = parse_arguments(MatmulShareBenchmark, __doc__)
    with TemporaryDirectory() as scratch:
        report(arguments, *measure_shares(arguments, Path(scratch)))


def measure_shares(arguments: MatmulShareBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The tables, and the numbers behind them; draws the plot."""
    alone = partial(run_alone, threads=arguments.threads)
    precisions = ["fp32", "bf16"] if bf16_in_hardware() else ["fp32"]
    depths = sorted({*arguments.layers, TinyBertConfig(**SIZES[arguments.size]).num_hidden_layers})
    folders = {
        layers: str(alone(make_model, arguments.size, scratch / str(layers), {"num_hidden_layers": layers}))
        for layers in depths
    }
    points = list_points(arguments, depths[-1])
    numbers: dict[str, Any] = {}
    rows: list[list[Any]] = []
    for precision in precisions:
        before = alone(matmul_rates, precision, arguments.matmul_seconds)
        reached = {
            point: median(
                alone(rate, point, folders[point.layers], precision, scratch) for _ in range(arguments.repeats)
            )
            for point in dict.fromkeys(point for series in points.values() for point in series)
        }
        after = alone(matmul_rates, precision, arguments.matmul_seconds)
        rates = {shape: max(before[shape], after[shape]) for shape in before}
        best = max(rates, key=lambda shape: rates[shape])
        numbers[precision] = {"matmul": rates, "points": [(*point, value) for point, value in reached.items()]}
        rows.append([precision, best, "", "", "", f"{rates[best]:,.1f}", "100 %"])
        rows += [
            [precision, *point, f"{value:,.1f}", f"{100 * value / rates[best]:.0f} %"]
            for point, value in reached.items()
        ]
        if arguments.plot:
            shares = {point: 100 * value / rates[best] for point, value in reached.items()}
            draw(points, shares, precision, Path(arguments.plot))
    header = ["precision", "work", "tokens of a text", "texts", "layers", "GFLOP/s", "share"]
    return [table(header, rows)], numbers


def list_points(arguments: MatmulShareBenchmark, layers: int) -> dict[str, list[Point]]:
    """A series for each thing that grows while the others stay: what the x axis says -> points."""
    works = ("training", "encoding")
    middle = arguments.lengths[len(arguments.lengths) // 2]
    texts = 32
    return {
        "tokens": [Point(work, tokens, texts, layers) for work, tokens in product(works, arguments.lengths)],
        "pairs of a batch": [Point("training", middle, 2 * pairs, layers) for pairs in arguments.batch_sizes],
        "layers": [Point(work, middle, texts, depth) for work, depth in product(works, arguments.layers)],
        "texts": [Point("encoding", middle, count, layers) for count in arguments.num_texts],
    }


def draw(points: dict[str, list[Point]], shares: dict[Point, float], precision: str, path: Path) -> None:
    """One panel for each series; bf16 goes into a file of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    positions = {
        "tokens": lambda point: point.tokens,
        "pairs of a batch": lambda point: point.texts // 2,
        "layers": lambda point: point.layers,
        "texts": lambda point: point.texts,
    }
    figure, axes = pyplot.subplots(1, len(points), figsize=(14, 3.5), sharey=True, layout="constrained")
    for axis, (name, series) in zip(axes, points.items(), strict=True):
        for work, colour in (("training", "tab:blue"), ("encoding", "tab:orange")):
            chosen = [point for point in series if point.work == work]
            if chosen:
                axis.plot(
                    [positions[name](point) for point in chosen],
                    [shares[point] for point in chosen],
                    marker="o",
                    color=colour,
                    label=work,
                )
        axis.set(xlabel=name, ylim=(0, 100), xscale="log")
        axis.set_xticks(sorted({positions[name](point) for point in series}), minor=False)
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"% of the matmul rate, {precision}")
    axes[0].legend()
    path = path if precision == "fp32" else path.with_stem(f"{path.stem}_{precision}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
