"""The model card: what was measured of a model, in the template model_card.md. No number comes from anywhere else."""

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers import Pipeline, TextClassificationPipeline
from transformers.utils import SAFE_WEIGHTS_NAME

from ..configuration_tinybert import has_berts_form
from ..data import EXAMPLES_FILE, FILE_KINDS
from ..files import read_json, sha256
from ..hub import httpx
from ..measures import MEASURES
from ..reading import file_suffix

logger = logging.getLogger(__name__)

SIGNATURE = "\n<!-- Written by tinybert publish, which replaces it while nobody edits it: {} -->\n"
# The bundled start, by the SHA-256 of its weights.
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "sentence-transformers/all-MiniLM-L6-v2"

NO_PATHS = {"labels", "hardware", "versions"}  # in a summary or an evaluation
# What the Hub and sentence-transformers call our measures.
HUB_METRICS = {name: f"cosine_{shown.lower()}" for name, shown in MEASURES.items()}
HUB_METRICS |= {"AP": "cosine_map@100", "f1_macro": "f1"}
# The name of a library among the tags: the Hub finds the model among that library's, and shows how it loads it.
SEARCH_TAGS = ["semantic-search", "sentence-similarity", "sentence-transformers"]
ONNX_TAGS = ["onnx", "transformers.js"]


class Origin(NamedTuple):
    """What the metadata says of a model's origin. What nobody knows is left out."""

    license: str | None = None  # as the Hub abbreviates it
    language: Sequence[str] | str | None = None
    base_model: str | None = None
    datasets: Sequence[str] | None = None

    def complete(self, model: Path) -> "Origin":
        """With what the runs in a trained folder and the card of their start tell, where nothing was said."""
        runs = [read_json(path).get("arguments", {}) for path in sorted(model.glob("*_summary.json"))]
        made = {run.get("output_dir") for run in runs}
        data = [run["data"] for run in runs if is_hub_id(run.get("data"), made)]
        start = next((run["model"] for run in runs if run.get("model") and run["model"] not in made), "")
        known, theirs = start if is_hub_id(start, made) else None, None
        weights, card = Path(start, SAFE_WEIGHTS_NAME), Path(start, "README.md")
        try:
            if start and Path(start).is_dir():
                known = MINILM[1] if weights.is_file() and sha256(weights) == MINILM[0] else None
                theirs = ModelCard.load(card).data if card.is_file() else None
            elif known:
                theirs = HfApi().model_info(known, timeout=10).card_data
        except (httpx.HTTPError, OSError, ValueError, yaml.YAMLError) as error:
            logger.warning("The card of the start %s could not be read: %s", start, str(error).splitlines()[0])
        theirs = theirs or ModelCardData()
        if self.license and theirs.license and self.license != theirs.license:
            logger.warning("%s has the licence %s: check whether it allows %s.", start, theirs.license, self.license)
        datasets = self.datasets or list(dict.fromkeys(data)) or None
        language: Any = self.language or theirs.language
        return Origin(self.license or theirs.license, language, self.base_model or known, datasets)


def render_card(
    folder: Path, pipeline: Pipeline, name: str, origin: Origin, onnx_cosines: dict[str, float]
) -> ModelCard:
    """The card of a folder, whose examples are run here; `onnx_cosines` are those to the PyTorch model by file."""
    classifies = isinstance(pipeline, TextClassificationPipeline)
    own_stage = "sentiment" if classifies else "retrieval"
    summaries = [read_json(path) for path in sorted(folder.glob("*_summary.json"))]
    summaries.sort(key=lambda summary: summary.get("stage") == own_stage)  # the last stage stands last
    evaluations = [read_json(path) for path in sorted(folder.glob("evaluation_*.json"))]
    title = " ".join(name.rstrip("/").split("/")[-1].split())
    own_summary = next((summary for summary in summaries if summary["stage"] == own_stage), None)
    rows = read_json(folder / EXAMPLES_FILE)[:3]
    inputs = [row.get("answer") or (row if "text_pair" in row else row["text"]) for row in rows]
    results = measured_results(own_summary, evaluations)
    tags = [] if classifies else [*SEARCH_TAGS, *(ONNX_TAGS if onnx_cosines else [])]
    if own_summary:
        loss = "CrossEntropyLoss" if classifies else "MultipleNegativesRankingLoss"
        tags += ["generated_from_trainer", f"dataset_size:{own_summary['data']['train_rows']}", f"loss:{loss}"]
    metadata = ModelCardData(
        **origin._asdict(),
        library_name="transformers",
        pipeline_tag="text-classification" if classifies else "feature-extraction",
        tags=["tinybert", *tags],
        model_name=title if results else None,
        eval_results=results or None,
        widget=[{"text": row.get("query") or row["text"]} for row in rows if "text_pair" not in row] or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("model_card.md")),
        title=title,
        name=name,
        origin=origin,
        urls=[url for one in distributions(name="tinybert_hf") for url in one.metadata.get_all("Project-URL", [])],
        classifies=classifies,
        plain=has_berts_form(read_json(folder / "config.json")),
        pipeline=pipeline,
        queries=[row.get("query") for row in rows],
        inputs=inputs,
        answers=pipeline(inputs, truncation=True) if classifies else pipeline(rows[0]["query"], inputs),
        summaries=summaries,
        own_summary=own_summary,
        evaluations=evaluations,
        onnx_cosines=onnx_cosines,
        quote=shlex.quote,
        escape=lambda value: re.sub(r"([^\w\s@.,:+/()-])", r"\\\1", " ".join(str(value).split())),  # for Markdown
        literal=lambda value: json.dumps(value, ensure_ascii=False),
    )
    return ModelCard(sign(str(card).rstrip("\n")))


def is_signed(path: Path) -> bool:
    """Whether a build wrote this card, and nobody edited it since."""
    text = path.read_text(encoding="utf-8")
    return sign(text.rpartition(SIGNATURE.partition("{")[0])[0]) == text


def sign(card: str) -> str:
    return card + SIGNATURE.format(hashlib.sha256(card.encode()).hexdigest())


def without_paths(value: Any, made: set[str]) -> Any:
    """What training or evaluation wrote, names in place of local paths; `made` are folders of runs, which look like Hub ids."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key in NO_PATHS or key.endswith(("column", "columns"))}
        value = {key: without_paths(item, made) for key, item in value.items()} | kept
    elif isinstance(value, list):
        return [without_paths(item, made) for item in value]
    elif isinstance(value, str) and "://" not in value and not is_hub_id(value, made):
        path = Path(value)
        if len(path.parts) > 1 or value in made:
            return path.name if path.suffix else f"{path.name}/"
    return value


def measured_results(summary: dict[str, Any] | None, evaluations: list[dict[str, Any]]) -> list[EvalResult]:
    """What was measured of this model on test data, and on held-out rows while training; for the model-index."""
    tasks = {"retrieval": "information-retrieval", "sentiment": "text-classification"}
    measured = [(tasks["retrieval"], e["data"], e["data"], e["split"], e["results"]["model"]) for e in evaluations]
    if summary:
        run = summary["arguments"]
        data, task = run["eval_data"] or run["data"], tasks[summary["stage"]]
        measured.append((task, data, f"{data} (held out)", run["eval_split"], summary["results"]))
    return [
        EvalResult(task, data, name, HUB_METRICS.get(measure, measure), value, dataset_split=split, metric_name=measure)
        for task, data, name, split, values in measured
        for measure, value in values.items()
    ]


def is_hub_id(name: str | None, made_here: set[str]) -> bool:
    """Whether `--data` or `--model` named a repository on the Hub, as `load_data` decides it, and no run's output."""
    if not name or name in made_here or Path(name).exists():
        return False
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and file_suffix(Path(name)) not in FILE_KINDS
