"""A trained model to a complete folder with a model card: all that loading, searching and judging it needs."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Pipeline, TextClassificationPipeline

from .. import auto  # noqa: F401 - registers the models
from ..configuration_tinybert import TinyBertConfig
from ..errors import InputError, MissingFileError
from ..files import explained, put_in_place, scratch_folder, sha256
from ..loading import load_model, load_tokenizer
from ..modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel
from ..pipeline_tinybert import SemanticSearchPipeline
from ..tokenization import save_tokenizer
from .model_card import PASSAGES, QUERY, REVIEWS, read_json, render_card

logger = logging.getLogger(__name__)

ARCHITECTURES = {cls.__name__: cls for cls in (TinyBertModel, TinyBertForSequenceClassification)}
RESULT_FILES = ("*_summary.json", "evaluation_*.json")
BUILD_RECORD = ".build.json"  # file -> SHA-256 of what a build wrote; stays on this machine


def build_folder(model: Path, output_dir: Path, name: str, license: str = "apache-2.0", onnx: bool = False) -> Path:
    """Write all that loading, searching and judging the model needs; `output_dir` appears whole or not at all.

    Args:
        model: a model folder, as training leaves it. A README.md in it that no build wrote is kept.
        output_dir: replaced where it is the untouched result of an earlier build.
        name: what the card's snippets load: the Hub id, or the folder.
        license: of the model, as the Hub abbreviates it.
        onnx: also export the encoder for ONNX Runtime, in fp32 and with weights of 8 bits.

    Returns: `output_dir`, absolute.

    Raises:
        InputError: if `output_dir` holds a file that no build wrote, or that was edited since; if `model` is no TinyBERT,
            its weights are incomplete, or a summary cannot be read; if ONNX is asked for a classifier, or computes
            something else.
        MissingFileError: if `model` lacks its configuration, weights or tokenizer.
        MissingExtraError: if ONNX is asked for without its extra.
        UnreadableError: if `model` cannot be loaded.
    """
    if onnx:
        from ..onnx import export_onnx
    output_dir = output_dir.expanduser().resolve()
    check_replaceable(output_dir)
    pipeline = load_pipeline(model)
    encodes = isinstance(pipeline.model, TinyBertModel)
    if onnx and not encodes:
        raise InputError(f"{model} is a classifier; only encoders are exported to ONNX. Leave --onnx out.")
    with replace_whole(output_dir) as folder:
        with explained(folder, "Mend this, and run the same command again."):
            pipeline.model.save_pretrained(folder)
            save_tokenizer(pipeline.tokenizer, folder)
        if encodes:
            write_sentence_transformers_files(folder, pipeline.model.config)
        cosines = {}
        if onnx:
            texts = [QUERY, *PASSAGES, *REVIEWS, " ".join(PASSAGES * 50)]  # the last one is cut off
            cosines = export_onnx(pipeline.model, pipeline.tokenizer, folder, texts)
        for pattern in RESULT_FILES:
            for path in model.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        if (model / "README.md").is_file() and not was_built(model, "README.md"):
            logger.info("The README.md of %s is kept as it is; remove it to have a card written.", model)
            shutil.copyfile(model / "README.md", folder / "README.md")
        else:
            render_card(folder, pipeline, name, license, cosines).save(folder / "README.md")
    return output_dir


def check_replaceable(output_dir: Path) -> None:
    """Raises: InputError: if it is a file, or holds one that no build wrote, or that was edited since."""
    if output_dir.is_file():
        raise InputError(f"{output_dir} is a file; choose another --output_dir.")
    if foreign := next((file for file in list_files(output_dir) if not was_built(output_dir, file)), None):
        raise InputError(
            f"{output_dir} holds {foreign}, which was not built here, or was edited since. It is left alone: choose "
            "another --output_dir, or move it away."
        )


@contextmanager
def replace_whole(output_dir: Path) -> Iterator[Path]:
    """An empty folder to build in, which becomes `output_dir` at the end; after an exception nothing has changed."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output_dir.parent, f"unfinished-{output_dir.name}-") as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        for path in folder.rglob("*.json"):
            content = read_json(path)
            if isinstance(content, dict) and "--" in json.dumps(content.get("auto_map")):
                raise InputError(
                    f"{path.name} names code of another repository ({content['auto_map']}): not published."
                )
        hashes = {file: sha256(folder / file) for file in sorted(list_files(folder))}
        (folder / BUILD_RECORD).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.rename(scratch / "old")
        put_in_place(folder, output_dir)


def load_pipeline(folder: Path) -> Pipeline:
    """Load model and tokenizer, for search or classification as the architecture in the configuration says.

    Raises: as `build_folder`.
    """
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not any(folder.glob(pattern)):
            checkpoints = ", ".join(sorted(path.name for path in folder.glob("checkpoint-*")))
            hint = f" Finish its training first, or pass one of {checkpoints} in it." if checkpoints else ""
            raise MissingFileError(f"{folder} is no complete model folder: it has no {pattern}.{hint}")
    architecture = (read_json(folder / "config.json").get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(f"{folder} holds a {architecture} model, none of {', '.join(ARCHITECTURES)}.")
    model = load_model(ARCHITECTURES[architecture], folder, folder)
    tokenizer = load_tokenizer(folder, model.config.vocab_size)
    classifies = isinstance(model, TinyBertForSequenceClassification)
    pipeline = TextClassificationPipeline if classifies else SemanticSearchPipeline
    return pipeline(model=model.eval(), tokenizer=tokenizer)


def write_sentence_transformers_files(folder: Path, config: TinyBertConfig) -> None:
    """Write what `SentenceTransformer(folder, trust_remote_code=True)` reads: the files that its own save writes.

    They name modules of sentence-transformers only, so that the encoder is all the remote code. The longest text is the
    tokenizer's.
    """
    package = "sentence_transformers"
    modules = [
        ("", f"{package}.base.modules.transformer.Transformer"),
        ("1_Pooling", f"{package}.sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", f"{package}.base.modules.normalize.Normalize"),
    ]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": name} for place, (path, name) in enumerate(modules)
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "1_Pooling/config.json": {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": config.pooling,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        },
    }
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def list_files(folder: Path) -> Iterator[str]:
    """The files of a built folder, by their path in it: what is uploaded, no more and no less."""
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path != folder / BUILD_RECORD:
            yield path.relative_to(folder).as_posix()


def was_built(folder: Path, file: str) -> bool:
    """Whether a build wrote this file, and nobody changed it since."""
    record = folder / BUILD_RECORD
    return record.is_file() and read_json(record).get(file) == sha256(folder / file)
