"""How good search becomes with more pairs of your own, beside BM25 and the model that training starts from.

    python -m benchmarks.learning_curve --model sentence-transformers/all-MiniLM-L6-v2 \\
        --output_file benchmarks/results/learning_curve.json --plot docs/learning_curve.png

Trains the recipe `minilm` on the first pairs of the bundled data, and measures each model on the bundled test set: 1,000
queries, 10,000 documents. The best checkpoint is chosen on the bundled validation pairs. Batch and passes are the
recipe's. The output file is written after each number of pairs, and numbers that are in it are not measured again. Without
`--model`, only the picture is drawn.
"""

import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import HfArgumentParser

from benchmarks.measure import describe_machine
from tinybert_hf.cli import main as tinybert
from tinybert_hf.data import load_data
from tinybert_hf.evaluation import BM25, MODEL, evaluate_model

TRAIN, VALIDATION = "data/debian/train.jsonl.gz", "data/debian/validation.jsonl.gz"
TEST = "data/debian/test"
MEASURE = "nDCG@10"


@dataclass
class LearningCurve:
    """The numbers of pairs, and where the result goes."""

    output_file: str = field(metadata={"help": "Where the numbers are kept, as JSON."})
    model: str | None = field(
        default=None, metadata={"help": "The start, a folder or Hub id; without it, only the plot is drawn."}
    )
    pairs: list[int] = field(
        default_factory=lambda: [30, 100, 300, 1_000, 3_000, 10_000, 18_000],
        metadata={"help": "How many pairs to train on, a run for each."},
    )
    plot: str | None = field(default=None, metadata={"help": "A PNG file to draw."})


def measure(curve: LearningCurve, path: Path) -> None:
    """Write nDCG@10 for each number of pairs, as `benchmarks.tables` shows a result."""
    assert curve.model
    numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else start(curve.model)
    rows = load_data(TRAIN)
    for count in sorted(set(curve.pairs) - {row.get("pairs") for row in numbers["rows"]}):
        with TemporaryDirectory() as folder:
            data, output_dir = Path(folder, f"{count}.jsonl"), Path(folder, "model")
            rows.select(range(count)).to_json(data)
            flags = {
                "data": data,
                "eval_data": VALIDATION,
                "model": curve.model,
                "output_dir": output_dir,
                "report_to": "none",
            }
            tinybert(["train", "retrieval", "minilm", *(f"--{name}={value}" for name, value in flags.items())])
            result = evaluate_model(str(output_dir), TEST)
        numbers["rows"].append({"system": "recipe minilm", "pairs": count, **cell(result, MODEL)})
        numbers["rows"].sort(key=lambda row: row.get("pairs", -1))
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def start(model: str) -> dict[str, Any]:
    """BM25, and the model as it is."""
    result = evaluate_model(model, TEST)
    return {
        "title": f"How many pairs are enough, {MEASURE}",
        "command": ["python -m benchmarks.learning_curve --model START --output_file FILE"],
        "machine": describe_machine(0),
        "date": date.today().isoformat(),
        "source": "the run",
        "log": ["../log/quality.md#learning-curve"],
        "columns": {"system": None, "pairs": 0, MEASURE: 3},
        "rows": [
            {"system": BM25, **cell(result, BM25)},
            {"system": Path(model).name, "pairs": 0, **cell(result, MODEL)},
        ],
        "notes": ["The bundled pairs and their test: 1,000 queries and 10,000 documents. One run, seed 0."],
    }


def cell(result: dict[str, Any], system: str) -> dict[str, Any]:
    """A system's measure, and half of its 95% interval."""
    low, high = result["intervals"][system][MEASURE]
    return {MEASURE: {"value": result["results"][system][MEASURE], "plus_minus": (high - low) / 2}}


def draw(numbers: dict[str, Any], path: Path) -> None:
    """The measure over the number of pairs, the latter as a scale of equal steps; BM25 and the start as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [row for row in numbers["rows"] if "pairs" in row]
    lines = [row for row in numbers["rows"] if not row.get("pairs")]
    values = [row[MEASURE]["value"] for row in trained]
    spreads = [row[MEASURE]["plus_minus"] for row in trained]
    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axis.errorbar(
        range(len(trained)), values, spreads, marker="o", capsize=3, color="C0", label="trained on your pairs"
    )
    for place, value in enumerate(values):
        axis.annotate(f"{value:.3f}", (place, value), xytext=(6, -13), textcoords="offset points", color="C0")
    for row, color in zip(lines, ("C1", "C2"), strict=True):
        value = row[MEASURE]["value"]
        axis.axhline(value, color=color, linestyle="--", label=f"{row['system']}: {value:.3f}")
    axis.set_xticks(range(len(trained)), [f"{row['pairs']:,}" for row in trained])
    axis.set_xlabel("pairs of a query and its answer that the model was trained on")
    axis.set_ylabel(f"{MEASURE} on 1,000 new queries")
    axis.grid(axis="y", alpha=0.3)
    axis.margins(x=0.1, y=0.1)
    axis.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    (curve,) = HfArgumentParser(LearningCurve, description=__doc__).parse_args_into_dataclasses()
    path = Path(curve.output_file)
    if curve.model:
        path.parent.mkdir(parents=True, exist_ok=True)
        measure(curve, path)
    if curve.plot:
        draw(json.loads(path.read_text(encoding="utf-8")), Path(curve.plot))


if __name__ == "__main__":
    main()
