"""A trained model to a complete folder with a model card, and from there to the Hugging Face Hub in one commit."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx
from transformers import AutoTokenizer, Pipeline, TextClassificationPipeline

from .configuration_tinybert import TinyBertConfig
from .model_card import PASSAGES, QUERY, REVIEWS, read_json, render_card
from .modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel
from .pipeline_tinybert import SemanticSearchPipeline
from .tokenization import save_tokenizer

ARCHITECTURES = {cls.__name__: cls for cls in (TinyBertModel, TinyBertForSequenceClassification)}
RESULT_FILES = ("*_summary.json", "evaluation_*.json")
BUILD_RECORD = ".build.json"  # file -> SHA-256 of what a build wrote; stays on this machine
SECONDS_OF_SILENCE = 120  # after which a request to the Hub has failed; huggingface_hub itself waits for ever

REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a valid token that may write",
    403: "Use a token that may write and a --repo_id of your own, or --create_pr for someone else's model",
    404: "Check --repo_id and --revision, and that your token may see them",
    412: "Someone else has just changed it: look at their change",
}


class HubError(OSError):
    """The model is not on the Hub, or not as it should be; the message says why and what to do."""


# ---- The folder ----


def build_folder(
    model: Path, output_dir: Path, name: str, license: str = "apache-2.0", onnx: bool = False
) -> Path:
    """Write all that loading, searching and judging the model needs; `output_dir` appears whole or not at all.

    Args:
        model: a model folder, as training leaves it. A README.md in it that no build wrote is kept.
        output_dir: replaced where it is the untouched result of an earlier build.
        name: what the card's snippets load: the Hub id, or the folder.
        license: of the model, as the Hub abbreviates it.
        onnx: also export the encoder for ONNX Runtime, in fp32 and with weights of 8 bits.

    Returns: `output_dir`, absolute.

    Raises:
        FileExistsError: if `output_dir` holds a file that no build wrote, or that was edited since.
        FileNotFoundError: if `model` lacks its configuration, weights or tokenizer.
        ValueError: if it is no TinyBERT, its weights are incomplete, or a summary cannot be read; if ONNX is asked for
            without its extra or for a classifier, or computes something else.
    """
    if onnx:
        try:
            from .onnx import export_onnx
        except ModuleNotFoundError as error:
            raise ValueError(f"--onnx: {error}") from error
    output_dir = output_dir.expanduser().resolve()
    if output_dir.is_file():
        raise FileExistsError(f"{output_dir} is a file; choose another --output_dir.")
    if foreign := next((file for file in list_files(output_dir) if not was_built(output_dir, file)), None):
        raise FileExistsError(
            f"{output_dir} holds {foreign}, which was not built here, or was edited since. It is left alone: choose "
            "another --output_dir, or move it away."
        )
    pipeline = load_pipeline(model)
    encodes = isinstance(pipeline.model, TinyBertModel)
    if onnx and not encodes:
        raise ValueError(f"{model} is a classifier; only encoders are exported to ONNX. Leave --onnx out.")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f"unfinished-{output_dir.name}-") as scratch:
        folder = Path(scratch, "new")
        pipeline.model.save_pretrained(folder)
        save_tokenizer(pipeline.tokenizer, folder)
        if encodes:
            describe_to_sentence_transformers(folder, pipeline.model.config)
        cosines = {}
        if onnx:
            texts = [QUERY, *PASSAGES, *REVIEWS, " ".join(PASSAGES * 50)]  # the last one is cut off
            cosines = export_onnx(pipeline.model, pipeline.tokenizer, folder, texts)
        for pattern in RESULT_FILES:
            for path in model.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        if (model / "README.md").is_file() and not was_built(model, "README.md"):
            print(f"The README.md of {model} is kept as it is; remove it to have a card written.")
            shutil.copyfile(model / "README.md", folder / "README.md")
        else:
            render_card(folder, pipeline, name, license, cosines).save(folder / "README.md")
        hashes = {file: sha256(folder / file) for file in sorted(list_files(folder))}
        (folder / BUILD_RECORD).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.rename(Path(scratch, "old"))
        folder.rename(output_dir)
    return output_dir


def load_pipeline(folder: Path) -> Pipeline:
    """Model and tokenizer, as what the architecture in the configuration is for: classification or search.

    Raises: as `build_folder`.
    """
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not any(folder.glob(pattern)):
            checkpoints = ", ".join(sorted(path.name for path in folder.glob("checkpoint-*")))
            hint = f" Finish its training first, or pass one of {checkpoints} in it." if checkpoints else ""
            raise FileNotFoundError(f"{folder} is no complete model folder: it has no {pattern}.{hint}")
    architecture = (read_json(folder / "config.json").get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{folder} holds a {architecture} model, none of {', '.join(ARCHITECTURES)}.")
    model, loading = ARCHITECTURES[architecture].from_pretrained(folder, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"The weights in {folder} are incomplete: {missing[0]} and perhaps others are missing."
        )
    classifies = isinstance(model, TinyBertForSequenceClassification)
    pipeline = TextClassificationPipeline if classifies else SemanticSearchPipeline
    return pipeline(model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder))


def describe_to_sentence_transformers(folder: Path, config: TinyBertConfig) -> None:
    """Write what `SentenceTransformer(folder, trust_remote_code=True)` reads: the files that its own save writes.

    Only its own modules are named, so that the encoder is all the remote code. The longest text is the tokenizer's.
    """
    package = "sentence_transformers"
    modules = [
        ("", f"{package}.base.modules.transformer.Transformer"),
        ("1_Pooling", f"{package}.sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", f"{package}.base.modules.normalize.Normalize"),
    ]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": name}
            for place, (path, name) in enumerate(modules)
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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- The Hub ----


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    revision: str = "main",
    overwrite_readme: bool = False,
) -> str:
    """Put a built folder on the Hub in one commit, load it back, and return the address of the commit or pull request.

    Only files that differ are sent, and without any there is no commit. So the same call is safe after any fault, also
    where a commit was made and its answer lost.

    Args:
        folder: from `build_folder`.
        repo_id: OWNER/NAME; created where it does not exist.
        private: create it private; an existing public repository is refused.
        create_pr: open a pull request instead of committing to `revision`.
        revision: a branch, created where it does not exist, or `refs/pr/N`.
        overwrite_readme: replace a README.md on the Hub that differs.

    Raises:
        HubError: if the Hub refuses or fails, or does not give back the same model.
        ValueError: if the name is taken by another kind of model, or public where private was asked.
    """
    api = HfApi()
    get_session().timeout = httpx.Timeout(SECONDS_OF_SILENCE)
    with hub_errors_explained(api.endpoint):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if not create_pr and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        if private and not info.private:
            raise ValueError(
                f"{repo_id} exists and is public; --private does not hide it. Hide it in its settings on the Hub, choose "
                "another --repo_id, or leave --private out."
            )
        commit, url = info.sha or revision, f"{api.endpoint}/{repo_id}/tree/{info.sha}"
        files = compare(api, repo_id, commit, folder, list_files(folder))
        if files.get("config.json"):  # it has another one
            config = read_json(Path(api.hf_hub_download(repo_id, "config.json", revision=commit)))
            if config.get("model_type") != "tinybert":
                raise ValueError(
                    f"{repo_id} is taken by a {config.get('model_type')} model; choose another --repo_id."
                )
        if files.get("README.md") and not overwrite_readme:
            del files["README.md"]
            print("The README.md on the Hub differs and stays; pass --overwrite_readme to replace it.")
        if not files:
            print(f"The Hub is up to date: {url}")
        elif create_pr and (pull_request := find_pull_request(api, repo_id, folder, files)):
            url, commit = pull_request
            print(f"A pull request with these files is there already: {url}")
        else:
            done = api.create_commit(
                repo_id,
                [CommitOperationAdd(file, folder / file) for file in files],
                commit_message="Publish the model",
                revision=revision,
                create_pr=create_pr,
                parent_commit=commit,
            )
            url, commit = done.pr_url or done.commit_url, done.oid
            print(f"Pushed {len(files)} files in one commit: {url}")
    load_back(folder, repo_id, commit, api.endpoint)
    print("Loaded it back from the Hub in a fresh process: its outputs are those of the local folder.")
    return url


def compare(api: HfApi, repo_id: str, revision: str, folder: Path, files: Iterable[str]) -> dict[str, bool]:
    """The files that are not on the Hub as they are in the folder; True where it has one with other content."""
    files = sorted(files)
    infos = api.get_paths_info(repo_id, files, revision=revision)
    remote = {info.path: info for info in infos if isinstance(info, RepoFile)}
    return {
        file: file in remote
        for file in files
        if file not in remote or not same_content(remote[file], folder / file)
    }


def same_content(remote: RepoFile, path: Path) -> bool:
    if remote.lfs:
        return remote.lfs.sha256 == sha256(path)
    content = path.read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # git's id of it


def find_pull_request(api: HfApi, repo_id: str, folder: Path, files: Iterable[str]) -> tuple[str, str] | None:
    """Address and commit of a recent pull request with these very files: a call whose answer was lost opened it."""
    pull_requests = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
    for ref in sorted(pull_requests, key=lambda ref: int(ref.name), reverse=True)[:5]:
        if not compare(api, repo_id, ref.target_commit, folder, files):
            return f"{api.endpoint}/{repo_id}/discussions/{ref.name}", ref.target_commit
    return None


@contextmanager
def hub_errors_explained(endpoint: str) -> Iterator[None]:
    """Turn what a failing Hub, or the way to it, raises into a HubError that says what to do."""
    try:
        yield
    except (httpx.HTTPError, json.JSONDecodeError, RuntimeError, LocalEntryNotFoundError) as error:
        wraps = isinstance(error, (RuntimeError, LocalEntryNotFoundError))  # an LFS upload; a download
        cause = error.__cause__ if wraps else error
        if not isinstance(cause, (httpx.HTTPError, json.JSONDecodeError)):
            raise
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        reason = getattr(cause, "server_message", None) or f"{type(cause).__name__}: {cause}".splitlines()[0]
        fault = "Correct what it names" if 400 <= status < 500 else "Check the network, or wait a few minutes"
        raise HubError(
            f"{endpoint} did not take the model ({f'{status}, ' if status else ''}{reason}). "
            f"{REMEDIES.get(status, fault)}, then run the same command again. The local folder is intact."
        ) from error


# Runs in a process of its own that cannot import this package: the code comes with the model, as for a stranger.
LOAD_BACK = """
import sys
sys.modules["tinybert_hf"] = None
import torch, transformers
repo_id, revision, folder, auto_class = sys.argv[1:]

def outputs(source, revision):
    options = {"revision": revision, "trust_remote_code": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    model = getattr(transformers, auto_class).from_pretrained(source, **options).eval()
    with torch.inference_mode():
        answer = model(**tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt"))
    return (answer.logits if "logits" in answer else answer.pooler_output).double()

difference = (outputs(repo_id, revision) - outputs(folder, "main")).abs().max().item()
if not difference <= 1e-6:
    sys.exit(f"an output differs by {difference:g} from that of the local folder")
"""


def load_back(folder: Path, repo_id: str, revision: str, endpoint: str) -> None:
    """Load the model from the Hub, past all caches, and compare its output on a sentence with the folder's.

    Raises: HubError: if it does not load, or an output differs by more than 1e-6.
    """
    encodes = TinyBertModel.__name__ in read_json(folder / "config.json")["architectures"]
    auto_class = "AutoModel" if encodes else "AutoModelForSequenceClassification"
    with TemporaryDirectory() as scratch:
        caches = {"HF_HUB_CACHE": f"{scratch}/hub", "HF_MODULES_CACHE": f"{scratch}/modules"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD_BACK, repo_id, revision, str(folder.resolve()), auto_class],
            env=os.environ | caches | {"HF_ENDPOINT": endpoint},
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise HubError(
            f"The files are on the Hub, but {repo_id} at {revision} does not load as the local model: {reason}. Run the "
            "same command again; if it stays so, do not use the copy on the Hub."
        )
