"""A trained model to a complete folder with a model card: all that loading, searching and judging it needs."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Pipeline, TextClassificationPipeline
from transformers.utils import SAFE_WEIGHTS_NAME

from .. import auto  # noqa: F401 - registers the models
from ..configuration_tinybert import TinyBertConfig
from ..data import EXAMPLES_FILE, pick_examples, read_columns
from ..errors import InputError, MissingFileError
from ..files import explained, put_in_place, read_json, scratch_folder, sha256, write_json
from ..loading import load_model, load_tokenizer, loading
from ..modeling_tinybert import BERT_NAMES, QKV, TinyBertForSequenceClassification, TinyBertModel, rename
from ..pipeline_tinybert import SemanticSearchPipeline
from ..tokenization import save_tokenizer
from ..words import is_words_alone
from .model_card import Origin, is_signed, render_card, without_paths

logger = logging.getLogger(__name__)

ARCHITECTURES = {cls.__name__: cls for cls in (TinyBertModel, TinyBertForSequenceClassification)}
RESULT_FILES = ("*_summary.json", "evaluation_*.json")
POOLER_SCALE = 4096  # tanh(x / 4096) is x / 4096 to fp32; a power of two scales without rounding
BUILD_RECORD = ".build.json"  # file -> SHA-256 of what a build wrote; stays on this machine
STATIC = "0_StaticEmbedding"  # where model2vec looks for it too
ONNX_RECORD = "onnx/cosines.json"  # file -> what the card says of it


def build_folder(
    model: Path, output_dir: Path, name: str, origin: Origin | None = None, onnx: bool = False, rows: Path | None = None
) -> Path:
    """Write all that loading, searching and judging the model needs; `output_dir` appears whole or not at all.

    Args:
        model: a model folder, as training leaves it. A README.md in it that no build wrote is kept.
        output_dir: replaced where it is the untouched result of an earlier build; returned, absolute.
        name: what the card's snippets load: the Hub id, or the folder.
        origin: what the card's metadata says; the rest is taken from the summaries and the start's card.
        onnx: also export the encoder for ONNX Runtime, in fp32 and with weights of 8 bits.
        rows: a file of what card and page show; None takes what training held out.

    Raises: InputError: as `replace_whole`; if `model` is no TinyBERT, incomplete or damaged; if ONNX is asked for a
        classifier or without its extra, or computes another thing.
    """
    if onnx:
        from ..onnx import export_onnx
    output_dir = output_dir.resolve()
    with replace_whole(output_dir) as folder:
        pipeline = load_pipeline(model)
        config = pipeline.model.config
        encodes = isinstance(pipeline.model, TinyBertModel)
        if encodes:
            config.num_labels = 2  # the default, which is not written: no labels of stage one
            write_sentence_transformers_files(folder, pipeline)
        elif onnx:
            raise InputError(f"{model} is a classifier; only encoders are exported to ONNX. Leave --onnx out.")
        with explained(folder, "Mend this, and run the same command again."):
            pipeline.model.save_pretrained(folder)
            same_arithmetic = config.norm_position == "post" and config.position_embedding_type == "learned"
            if same_arithmetic and (encodes or config.pooling == "cls"):  # a BERT classifies the first token only
                write_berts_form(folder, config)
            save_tokenizer(pipeline.tokenizer, folder)
        try:
            results = {path.name: read_json(path) for pattern in RESULT_FILES for path in model.glob(pattern)}
            own = (model / EXAMPLES_FILE).is_file()
            general = Path(__file__).with_name("examples") / ("pairs.json" if encodes else "texts.json")
            examples = read_json(model / EXAMPLES_FILE if own else general)
            if rows:
                examples = pick_examples(read_columns(rows, {name: name for name in examples[0]}, {}))
            elif own:
                logger.info("The card shows some of the rows that training held out. --examples FILE shows others.")
            write_json(folder / EXAMPLES_FILE, examples)
            texts = [text for row in examples for text in row.values()]
            texts.append(" ".join(texts * 50))  # is cut off
            cosines = export_onnx(pipeline.model, pipeline.tokenizer, folder, texts) if onnx else {}
            if onnx:
                write_json(folder / ONNX_RECORD, cosines)
            made = {str(result.get("arguments", {}).get("output_dir")) for result in results.values()} | {str(model)}
            for file, result in results.items():
                write_json(folder / file, without_paths(result, made))
            if (model / "README.md").is_file() and not is_signed(model / "README.md"):
                logger.info("The README.md of %s is kept as it is; remove it to have a card written.", model)
                shutil.copyfile(model / "README.md", folder / "README.md")
            else:
                origin = (origin or Origin()).complete(model)
                render_card(folder, pipeline, name, origin, cosines).save(folder / "README.md")
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, jinja2.UndefinedError) as error:
            which = f"A summary, an evaluation or {EXAMPLES_FILE} of {model}"
            raise InputError(f"{which} is incomplete or wrong ({error}). Make it again, or remove it.") from error
    return output_dir


@contextmanager
def replace_whole(output_dir: Path) -> Iterator[Path]:
    """An empty folder to build in, which becomes `output_dir` at the end; after an exception nothing has changed.

    Raises: InputError: if `output_dir` is a file, or holds one that no build wrote, or that was edited since.
    """
    if output_dir.is_file():
        raise InputError(f"{output_dir} is a file; choose another --output_dir.")
    built = read_json(output_dir / BUILD_RECORD) if (output_dir / BUILD_RECORD).is_file() else {}
    for file in list_files(output_dir):
        if file not in built or built[file] != sha256(output_dir / file):
            raise InputError(
                f"{output_dir} holds {file}, which was not built here, or was edited since. It is left alone: choose "
                "another --output_dir, or move it away."
            )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output_dir.parent, f"unfinished-{output_dir.name}-") as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        write_json(folder / BUILD_RECORD, {file: sha256(folder / file) for file in sorted(list_files(folder))})
        if output_dir.exists():
            output_dir.rename(scratch / "old")
        put_in_place(folder, output_dir)


def tell_of_onnx(folder: Path, name: str, cosines: dict[str, float]) -> None:
    """Write the card of a built folder anew, for a repository that holds ONNX models of these weights."""
    said = ModelCard.load(folder / "README.md").data
    origin = Origin(said.license, said.language, said.base_model, said.datasets)
    render_card(folder, load_pipeline(folder), name, origin, cosines).save(folder / "README.md")
    write_json(folder / BUILD_RECORD, read_json(folder / BUILD_RECORD) | {"README.md": sha256(folder / "README.md")})


def load_pipeline(folder: Path) -> Pipeline:
    """Load model and tokenizer, for search or classification as the architecture in the configuration says."""
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not any(folder.glob(pattern)):
            checkpoints = ", ".join(sorted(path.name for path in folder.glob("checkpoint-*")))
            hint = f" Finish its training first, or pass one of {checkpoints} in it." if checkpoints else ""
            raise MissingFileError(f"{folder} is no complete model folder: it has no {pattern}.{hint}")
    if link := next((path for path in folder.iterdir() if path.is_symlink()), None):
        raise InputError(f"{link} is a link: what it names would be published. Replace it by a copy, or remove it.")
    with loading(folder):
        architecture = (TinyBertConfig.get_config_dict(folder)[0].get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(f"{folder} holds a {architecture} model, none of {', '.join(ARCHITECTURES)}.")
    model = load_model(ARCHITECTURES[architecture], folder, folder)
    tokenizer = load_tokenizer(folder, model.config.vocab_size)
    pipeline = SemanticSearchPipeline if isinstance(model, TinyBertModel) else TextClassificationPipeline
    return pipeline(model=model.eval(), tokenizer=tokenizer)


def write_berts_form(folder: Path, config: TinyBertConfig) -> None:
    """Rewrite a saved TinyBERT as the BERT that computes the same, which needs no code of ours; our classes read both.

    The first token passes through BERT's pooler where tanh is straight, and the classifier makes up for the scale. Beside a
    mean the pooler gives 0, since nobody should take it for the embedding.
    """
    weights = to_bert(load_file(folder / SAFE_WEIGHTS_NAME))
    pooler = "bert.pooler.dense" if "classifier.weight" in weights else "pooler.dense"
    weights[f"{pooler}.weight"] = torch.eye(config.hidden_size) * (config.pooling == "cls") / POOLER_SCALE
    weights[f"{pooler}.bias"] = torch.zeros(config.hidden_size)
    if "classifier.weight" in weights:
        weights["classifier.weight"] *= POOLER_SCALE
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    names = [name.removeprefix("Tiny") for name in config.architectures or []]
    berts = {"model_type": "bert", "architectures": names, "position_embedding_type": "absolute"}
    write_json(folder / "config.json", read_json(folder / "config.json") | berts)


def to_bert(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A TinyBERT's tensors under BERT's names: the inverse of `from_bert`."""
    berts = {name: theirs for theirs, name in BERT_NAMES.items()}
    weights = {}
    for name, tensor in own.items():
        parts = QKV if ".qkv." in name else ("",)
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            weights[rename(name, berts).replace("qkv", part)] = rows.contiguous()
    return weights


def write_sentence_transformers_files(folder: Path, pipeline: Pipeline) -> None:
    """Write what `SentenceTransformer(folder)` reads, in the form that its releases from 3 to 6 know."""
    config = pipeline.model.config
    words = is_words_alone(config) and config.position_embedding_type == "rotary"
    files = read_json(Path(__file__).with_name("sentence_transformers.json"))["words" if words else "layers"]
    files["config_sentence_transformers.json"]["prompts"] |= config.prompts
    if words:
        write_static_embedding(folder / STATIC, pipeline, files[f"{STATIC}/tokenizer.json"])
    else:
        files["sentence_bert_config.json"]["max_seq_length"] = config.max_position_embeddings
        pooling = files["1_Pooling/config.json"]
        pooling["word_embedding_dimension"] = config.hidden_size
        pooling |= {f"pooling_mode_{mode}": config.pooling in mode for mode in ("cls_token", "mean_tokens")}
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_json(folder / file, content)


@torch.no_grad()
def write_static_embedding(folder: Path, pipeline: Pipeline, tokenizer: dict[str, Any]) -> None:
    """Write an encoder without layers as a table whose mean others take, and complete its `tokenizer`.

    They leave [CLS] and [SEP] out of the mean. So each text begins with a mark, whose embedding is the sum of these two: the
    mean has another length, but the same direction.
    """
    embeddings, own = pipeline.model.embeddings, json.loads(pipeline.tokenizer.backend_tokenizer.to_str())
    table = embeddings.word_embeddings.weight * embeddings.scale + embeddings.token_type_embeddings.weight[0]
    ends = table[[pipeline.tokenizer.cls_token_id, pipeline.tokenizer.sep_token_id]].sum(dim=0, keepdim=True)
    folder.mkdir()
    save_file({"embeddings": torch.cat((table, ends))}, folder / SAFE_WEIGHTS_NAME)
    (mark,) = tokenizer["normalizer"]["normalizers"]
    own["model"]["vocab"][mark["prepend"]] = len(table)
    tokenizer["normalizer"]["normalizers"].insert(0, own["normalizer"])
    tokenizer["pre_tokenizer"]["pretokenizers"].append(own["pre_tokenizer"])
    tokenizer["truncation"]["max_length"] = pipeline.model.config.max_position_embeddings - 1
    tokenizer.update({name: value for name, value in own.items() if name not in tokenizer})


def list_files(folder: Path) -> Iterator[str]:
    """The files of a built folder, by their path in it: what is uploaded, no more and no less."""
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path != folder / BUILD_RECORD:
            yield path.relative_to(folder).as_posix()
