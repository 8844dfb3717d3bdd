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
        default_factory=lambda: [100, 300, 1_000, 3_000, 10_000, 18_000],
        metadata={"help": "How many pairs to train on, a run for each."},
    )
    plot: str | None = field(default=None, metadata={"help": "A PNG file to draw."})


def measure(curve: LearningCurve, path: Path) -> None:
    """Write nDCG@10 for each number of pairs, with its interval and the seconds of training, and the lines beside it."""
    assert curve.model
    numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else start(curve.model)
    rows = load_data(TRAIN)
    for count in sorted(set(curve.pairs) - {known["pairs"] for known in numbers["points"]}):
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
            summary = json.loads((output_dir / "retrieval_summary.json").read_text(encoding="utf-8"))
            result = evaluate_model(str(output_dir), TEST)
        numbers["points"].append({"pairs": count, "seconds": summary["seconds"], **point(result)})
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def start(model: str) -> dict[str, Any]:
    """The model as it is, and BM25."""
    result = evaluate_model(model, TEST)
    first = point(result)
    return {
        "model": Path(model).name,
        "machine": describe_machine(0),
        "measure": MEASURE,
        "points": [{"pairs": 0, **first}],
        "lines": {BM25: result["results"][BM25][MEASURE], Path(model).name: first["value"]},
    }


def point(result: dict[str, Any]) -> dict[str, Any]:
    """The model's measure and its interval."""
    low, high = result["intervals"][MODEL][MEASURE]
    return {"value": result["results"][MODEL][MEASURE], "low": low, "high": high}


def draw(numbers: dict[str, Any], path: Path) -> None:
    """The measure over the number of pairs, the latter as a scale of equal steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = numbers["points"]
    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    places = range(len(points))
    values = [point["value"] for point in points]
    below = [point["value"] - point["low"] for point in points]
    above = [point["high"] - point["value"] for point in points]
    axis.errorbar(places, values, yerr=(below, above), marker="o", capsize=3, color="C0", label="trained on your pairs")
    for place, value in zip(places, values, strict=True):
        axis.annotate(f"{value:.2f}", (place, value), xytext=(6, -12), textcoords="offset points", color="C0")
    for (name, value), color in zip(numbers["lines"].items(), ("C1", "C2"), strict=True):
        axis.axhline(value, color=color, linestyle="--", label=f"{name}: {value:.2f}")
    axis.set_xticks(places, [f"{point['pairs']:,}" for point in points])
    axis.set_xlabel("pairs of a query and its answer")
    axis.set_ylabel(numbers["measure"])
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right", frameon=False)
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
