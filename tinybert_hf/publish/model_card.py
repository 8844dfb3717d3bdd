"""The model card: what was measured of a model, in the template model_card.md. No number comes from anywhere else."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Pipeline, TextClassificationPipeline

from ..data import FILE_READERS
from ..errors import InputError

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")

# The name of a library among the tags: the Hub finds the model among that library's, and shows how it loads it.
SEARCH_TAGS = ["semantic-search", "sentence-similarity", "sentence-transformers"]
ONNX_TAGS = ["onnx", "transformers.js"]

# The card prints what the model answers to these.
QUERY = "chat with friends"
PASSAGES = [
    "A client for instant messaging over the XMPP protocol.",
    "A library that reads and writes compressed archives.",
    "An editor for photographs and drawings.",
]
REVIEWS = ["The food was cold and the waiter was rude.", "A warm and funny film. I loved it."]
PAIRS = [{"text": "A man plays a guitar.", "text_pair": "Someone makes music."}]


def render_card(folder: Path, pipeline: Pipeline, name: str, license: str, onnx_cosines: dict[str, float]) -> ModelCard:
    """The model card; its numbers are those of the folder's JSON files, and its first example is run here.

    `onnx_cosines` has the ONNX files of the folder with their lowest cosine to the PyTorch model.

    Raises: InputError: if a summary or an evaluation lacks what the card prints of it.
    """
    classifies = isinstance(pipeline, TextClassificationPipeline)
    own_stage = "sentiment" if classifies else "retrieval"
    summaries = [read_json(path) for path in sorted(folder.glob("*_summary.json"))]
    summaries.sort(key=lambda summary: summary.get("stage") == own_stage)  # the last stage stands last
    evaluations = [read_json(path) for path in sorted(folder.glob("evaluation_*.json"))]
    title = name.rstrip("/").split("/")[-1]
    try:
        own_summary = next((summary for summary in summaries if summary["stage"] == own_stage), None)
        runs = [summary["arguments"] for summary in summaries]
        made = {run["output_dir"] for run in runs}
        takes_pairs = classifies and own_summary and len(own_summary["arguments"]["text_columns"]) == 2
        inputs: Any = (PAIRS if takes_pairs else REVIEWS) if classifies else PASSAGES
        answers = pipeline(inputs) if classifies else pipeline(QUERY, inputs)
        results = measured_results(own_summary, evaluations)
        tags = [] if classifies else [*SEARCH_TAGS, *(ONNX_TAGS if onnx_cosines else [])]
        metadata = ModelCardData(
            language="en",
            license=license,
            library_name="transformers",
            pipeline_tag="text-classification" if classifies else "feature-extraction",
            tags=["tinybert", *tags],
            datasets=list(dict.fromkeys(run["data"] for run in runs if is_hub_id(run["data"], made))) or None,
            base_model=next((run["model"] for run in runs if is_hub_id(run["model"], made)), None),
            model_name=title if results else None,
            eval_results=results or None,
        )
        return ModelCard.from_template(
            metadata,
            template_path=str(CARD_TEMPLATE),
            title=title,
            name=name,
            classifies=classifies,
            config=pipeline.model.config,
            parameters=pipeline.model.num_parameters(),
            ignores_case=pipeline.tokenizer.tokenize("WORD") == pipeline.tokenizer.tokenize("word"),
            query=QUERY,
            inputs=inputs,
            printed=[f"{a['score']:.3f}  {a['label' if classifies else 'text']}" for a in answers],
            summaries=summaries,
            own_summary=own_summary,
            evaluations=evaluations,
            onnx_cosines=onnx_cosines,
            quote=shlex.quote,
        )
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise InputError(f"A summary or evaluation of the model is incomplete ({error}); make it anew.") from error


def measured_results(summary: dict[str, Any] | None, evaluations: list[dict[str, Any]]) -> list[EvalResult]:
    """What was measured of this model on test data, and on held-out rows while training; for the model-index."""
    tasks = {"retrieval": "information-retrieval", "sentiment": "text-classification"}
    measured = [(tasks["retrieval"], e["data"], e["data"], e["split"], e["results"]["model"]) for e in evaluations]
    if summary:
        run = summary["arguments"]
        data, task = run["eval_data"] or run["data"], tasks[summary["stage"]]
        measured.append((task, data, f"{data} (held out)", run["eval_split"], summary["results"]))
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=name,
            dataset_split=split,
            metric_type=measure.lower(),
            metric_name=measure,
            metric_value=value,
        )
        for task, data, name, split, values in measured
        for measure, value in values.items()
    ]


def is_hub_id(name: str | None, made_here: set[str]) -> bool:
    """Whether `--data` or `--model` named a repository on the Hub, as `load_data` decides it, and no run's output."""
    if not name or name in made_here or Path(name).exists():
        return False
    file = any(suffix in FILE_READERS for suffix in Path(name).suffixes)
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and not file


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON: {error}") from error
