"""A trained model to a complete folder with a model card, and from there to the Hugging Face Hub in one commit.

Beside it, a page to search with it: the files of `space/`, which run in the visitor's browser.
"""

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
from typing import Any, NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceCard,
    SpaceCardData,
    get_session,
)
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
SPACE_FILES = Path(__file__).with_name("space")
SPACE_SETTINGS = "settings.js"  # the one file of the page that differs from Space to Space
NPM = "https://cdn.jsdelivr.net/npm"  # the page takes its libraries from here
TRANSFORMERS_JS = "4.3.1"
BROWSER_MODEL = "onnx/model_quantized.onnx"  # onnx.INT8_FILE, which only its extra can import
RESULT_FILES = ("*_summary.json", "evaluation_*.json")
BUILD_RECORD = ".build.json"  # file -> SHA-256 of what a build wrote; stays on this machine
SECONDS_OF_SILENCE = 120  # after which a request to the Hub has failed; huggingface_hub itself waits for ever

REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a valid token that may write",
    403: "Use a token that may write and a --repo_id of your own (and --space), or --create_pr for someone else's model",
    404: "Check --repo_id, --revision and --space, and that your token may see them",
    412: "Someone else has just changed it: look at their change",
}


class HubError(OSError):
    """The model is not on the Hub, or not as it should be; the message says why and what to do."""


class Pushed(NamedTuple):
    url: str  # of the commit or pull request
    commit: str


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
    check_replaceable(output_dir)
    pipeline = load_pipeline(model)
    encodes = isinstance(pipeline.model, TinyBertModel)
    if onnx and not encodes:
        raise ValueError(f"{model} is a classifier; only encoders are exported to ONNX. Leave --onnx out.")
    with replace_whole(output_dir) as folder:
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
    return output_dir


def check_replaceable(output_dir: Path) -> None:
    """Raises: FileExistsError: if it is a file, or holds one that no build wrote, or that was edited since."""
    if output_dir.is_file():
        raise FileExistsError(f"{output_dir} is a file; choose another --output_dir.")
    if foreign := next((file for file in list_files(output_dir) if not was_built(output_dir, file)), None):
        raise FileExistsError(
            f"{output_dir} holds {foreign}, which was not built here, or was edited since. It is left alone: choose "
            "another --output_dir, or move it away."
        )


@contextmanager
def replace_whole(output_dir: Path) -> Iterator[Path]:
    """An empty folder to build in, which becomes `output_dir` at the end; after an exception nothing has changed."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output_dir.parent, prefix=f"unfinished-{output_dir.name}-") as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        yield folder
        hashes = {file: sha256(folder / file) for file in sorted(list_files(folder))}
        (folder / BUILD_RECORD).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():
            output_dir.rename(Path(scratch, "old"))
        folder.rename(output_dir)


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


def build_space(output_dir: Path, space_id: str, model: Path, pushed_model: tuple[str, str] | None) -> Path:
    """Write the page that a static Space shows: visitors search their own passages with the model.

    Args:
        output_dir: replaced where it is the untouched result of an earlier build.
        space_id: OWNER/NAME; the NAME becomes the title.
        model: the model's folder, from `build_folder`, with ONNX models.
        pushed_model: Hub id and commit that the page loads; None for a page to try here, which loads `model` and must be
            served from a folder above both.

    Returns: `output_dir`, absolute.

    Raises:
        FileExistsError: if `output_dir` holds a file that no build wrote, or that was edited since.
        FileNotFoundError: if `model` must be loaded from here and has no ONNX model.
    """
    output_dir = output_dir.expanduser().resolve()
    check_replaceable(output_dir)
    if pushed_model:
        endpoint = HfApi().endpoint
        name, revision = pushed_model
        # A commit, not a branch: browsers keep what they loaded by its address.
        place = {"host": endpoint, "path": "{model}/resolve/{revision}/", "link": f"{endpoint}/{name}"}
    else:
        if not (model / BROWSER_MODEL).is_file():
            raise FileNotFoundError(f"{model} has no {BROWSER_MODEL}, which the page runs; add --onnx.")
        above = Path(os.path.relpath(model, output_dir)).parent.as_posix()
        name, revision = model.name, "main"
        place = {"host": f"{above}/", "path": "{model}/", "link": f"{above}/{name}/"}
    settings = {"model": name, "revision": revision, **place, "npm": NPM, "version": TRANSFORMERS_JS}
    card = SpaceCardData(
        title=space_id.split("/")[-1],
        emoji="🔎",
        colorFrom="blue",
        colorTo="gray",
        sdk="static",
        license="apache-2.0",  # of the page
        models=[name] if pushed_model else None,
        short_description="Rank your own passages by meaning, in your browser",
    )
    with replace_whole(output_dir) as folder:
        shutil.copytree(SPACE_FILES, folder, dirs_exist_ok=True)
        script = f"// Written by push_to_hub.py --space.\nexport const settings = {json.dumps(settings, indent=2)};\n"
        (folder / SPACE_SETTINGS).write_text(script, encoding="utf-8")
        text = f"---\n{card}\n---\n\nA page to search with [{name}]({place['link']}): the model runs in the browser.\n"
        SpaceCard(text).save(folder / "README.md")
    return output_dir


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
) -> Pushed:
    """Put a built folder on the Hub in one commit, load it back, and return the commit's or pull request's address.

    Only files that differ are sent, and without any there is no commit. So the same call is safe after any fault, also
    where a commit was made and its answer lost. ONNX models of other weights, which the folder does not replace, are
    deleted in the same commit; all else on the Hub stays.

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
        on_the_hub = [sibling.rfilename for sibling in info.siblings or []]
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
            stale = stale_onnx(on_the_hub, folder, files)
            done = api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(file, folder / file) for file in files),
                    *(CommitOperationDelete(file, is_folder=False) for file in stale),
                ],
                commit_message="Publish the model",
                revision=revision,
                create_pr=create_pr,
                parent_commit=commit,
            )
            url, commit = done.pr_url or done.commit_url, done.oid
            print(f"Pushed {len(files)} files in one commit: {url}")
            if stale:
                print(f"Deleted what was made from other weights: {', '.join(stale)}. --onnx makes new ones.")
    load_back(folder, repo_id, commit, api.endpoint)
    print("Loaded it back from the Hub in a fresh process: its outputs are those of the local folder.")
    return Pushed(url, commit)


def push_space(folder: Path, space_id: str, repo_id: str, commit: str) -> str:
    """Put a page from `build_space` on the Hub as a static Space, in one commit, and return the Space's address.

    As with `push`, only files that differ are sent, and the same call is safe after any fault.

    Args:
        space_id: OWNER/NAME; created where it does not exist.
        repo_id, commit: the model that the page loads.

    Raises:
        HubError: if the Hub refuses or fails.
        ValueError: if browsers cannot load the model from there, or the Space is another one.
    """
    api = HfApi()
    get_session().timeout = httpx.Timeout(SECONDS_OF_SILENCE)
    with hub_errors_explained(api.endpoint, "the page"):
        model = api.model_info(repo_id, revision=commit)
        if model.private:
            raise ValueError(f"{repo_id} is private: the visitors of --space could not load it.")
        if BROWSER_MODEL not in {sibling.rfilename for sibling in model.siblings or []}:
            raise ValueError(f"{repo_id} has no {BROWSER_MODEL}, which the page of --space runs; add --onnx.")
        api.create_repo(space_id, repo_type="space", space_sdk="static", exist_ok=True)
        info = api.space_info(space_id)
        present = {sibling.rfilename for sibling in info.siblings or []}
        # The Hub puts a page of its own into a new Space; that one is replaced.
        new = present <= {".gitattributes", "README.md", "index.html", "style.css"}
        if info.sdk not in (None, "static") or not (new or SPACE_SETTINGS in present):
            raise ValueError(f"{space_id} is taken by another Space; choose another --space.")
        url = f"{api.endpoint}/spaces/{space_id}"
        files = compare(api, space_id, info.sha or "main", folder, list_files(folder), "space")
        if not files:
            print(f"The page is up to date: {url}")
            return url
        api.create_commit(
            space_id,
            [CommitOperationAdd(file, folder / file) for file in files],
            commit_message=f"Search with {repo_id}",
            repo_type="space",
            parent_commit=info.sha,
        )
        print(f"Pushed the page in one commit: {url}")
        return url


def stale_onnx(on_the_hub: Iterable[str], folder: Path, changed: Iterable[str]) -> list[str]:
    """The ONNX files on the Hub that a push of `changed` files from `folder` leaves beside weights of another model."""
    if not any(file == "config.json" or file.endswith(".safetensors") for file in changed):
        return []
    kept = set(list_files(folder))
    return sorted(file for file in on_the_hub if file.startswith("onnx/") and file not in kept)


def compare(
    api: HfApi, repo_id: str, revision: str, folder: Path, files: Iterable[str], repo_type: str = "model"
) -> dict[str, bool]:
    """The files that are not on the Hub as they are in the folder; True where it has one with other content."""
    files = sorted(files)
    infos = api.get_paths_info(repo_id, files, revision=revision, repo_type=repo_type)
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
def hub_errors_explained(endpoint: str, sent: str = "the model") -> Iterator[None]:
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
            f"{endpoint} did not take {sent} ({f'{status}, ' if status else ''}{reason}). "
            f"{REMEDIES.get(status, fault)}, then run the same command again. The local folder is intact."
        ) from error


# Runs in a process of its own that cannot import this package: the code comes with the model, as for a stranger.
LOAD_BACK = """
import json, sys
sys.modules["tinybert_hf"] = None
import torch, transformers
repo_id, revision, folder, auto_class, text, onnx_files = sys.argv[1:]

def outputs(source, revision):
    options = {"revision": revision, "trust_remote_code": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    model = getattr(transformers, auto_class).from_pretrained(source, **options).eval()
    batch = tokenizer(text, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model(**batch)
    return batch, (answer.logits if "logits" in answer else answer.pooler_output).double()

_, expected = outputs(folder, "main")
batch, found = outputs(repo_id, revision)
difference = (found - expected).abs().max().item()
if not difference <= 1e-6:
    sys.exit(f"an output differs by {difference:g} from that of the local folder")
for file, lowest in json.loads(onnx_files).items():
    import onnxruntime
    session = onnxruntime.InferenceSession(transformers.utils.cached_file(repo_id, file, revision=revision))
    feeds = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    (embedding,) = session.run(["sentence_embedding"], feeds)
    cosine = torch.cosine_similarity(torch.from_numpy(embedding).double(), expected).item()
    if not cosine >= lowest:
        sys.exit(f"{file} has a cosine of {cosine:.4f} to the PyTorch model, {lowest} is expected")
"""


def load_back(folder: Path, repo_id: str, revision: str, endpoint: str) -> None:
    """Load the model from the Hub, past all caches, and compare its output on a sentence with the folder's.

    Where the folder has ONNX models, those on the Hub are run too.

    Raises: HubError: if one does not load, an output differs by more than 1e-6, or an ONNX model's by more than the
        export allows.
    """
    encodes = TinyBertModel.__name__ in read_json(folder / "config.json")["architectures"]
    auto_class = "AutoModel" if encodes else "AutoModelForSequenceClassification"
    onnx_files = {}
    if (folder / BROWSER_MODEL).is_file():
        from .onnx import LOWEST_COSINE

        onnx_files = LOWEST_COSINE
    # The export has compared the ONNX models on this sentence.
    arguments = [repo_id, revision, str(folder.resolve()), auto_class, PASSAGES[0], json.dumps(onnx_files)]
    with TemporaryDirectory() as scratch:
        caches = {"HF_HUB_CACHE": f"{scratch}/hub", "HF_MODULES_CACHE": f"{scratch}/modules"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD_BACK, *arguments],
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
