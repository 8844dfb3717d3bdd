"""A built folder, or the page to search with it, to the Hugging Face Hub in one commit."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from ..configuration_tinybert import TinyBertConfig, has_berts_form
from ..errors import InputError, UnreadableError
from ..files import read_json, scratch_folder
from ..hub import httpx, limited_silence
from .folder import BUILD_RECORD, ONNX_RECORD, RESULT_FILES, tell_of_onnx
from .model_card import is_signed
from .space import BROWSER_MODEL, SPACE_SETTINGS

logger = logging.getLogger(__name__)

REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a valid token that may write",
    403: "Use a token that may write and a --repo_id of your own (and --space), or --create_pr for someone else's model",
    404: "Check --repo_id, --revision and --space, and that your token may see them",
    412: "Someone else has just changed it: look at their change",
}


class HubError(UnreadableError):
    """The model is not on the Hub, or not as it should be; the message says why and what to do."""


def push(
    folder: Path, repo_id: str, private: bool, create_pr: bool, revision: str, overwrite_readme: bool
) -> tuple[str, str]:
    """Put a built folder on the Hub in one commit, and load it back.

    Only files that differ are sent, and without any there is no commit. So the same call is safe after any fault, also
    where a commit was made and its answer lost. ONNX models and results of other weights, which the folder does not
    replace, are deleted; of those that stay the card tells. A card of a build that nobody edited is replaced. All else stays.

    Args:
        repo_id: OWNER/NAME; created where it does not exist.
        create_pr: open a pull request instead of committing to `revision`.
        revision: a branch, created where it does not exist, or `refs/pr/N`.
        overwrite_readme: replace a README.md on the Hub that somebody wrote or edited.

    Returns: the address of the commit or the pull request, and the commit.

    Raises: HubError: if the Hub refuses or fails, or does not give back the same model. InputError: if the name is taken by
        another kind of model, or public where private was asked.
    """
    api = HfApi()
    with hub_errors_explained(api.endpoint):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if not create_pr and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        if private and not info.private:
            raise InputError(
                f"{repo_id} exists and is public; --private does not hide it. Hide it in its settings on the Hub, choose "
                "another --repo_id, or leave --private out."
            )
        commit, url = info.sha or revision, f"{api.endpoint}/{repo_id}/tree/{info.sha}"
        files, further = compare(api, repo_id, commit, folder)
        download = partial(api.hf_hub_download, repo_id, revision=commit)
        if files.get("config.json"):  # it has another one
            config = read_json(Path(download("config.json")))
            if config.get("model_type") != TinyBertConfig.model_type and not has_berts_form(config):
                raise InputError(f"{repo_id} is taken by a {config.get('model_type')} model; choose another --repo_id.")
        retrained = any(file == "config.json" or file.endswith(".safetensors") for file in files)
        if ONNX_RECORD in further and not retrained and is_signed(folder / "README.md"):
            tell_of_onnx(folder, repo_id, read_json(Path(download(ONNX_RECORD))))
            files, _ = compare(api, repo_id, commit, folder)
        if files.get("README.md") and not (overwrite_readme or is_signed(Path(download("README.md")))):
            del files["README.md"]
            logger.info("The README.md on the Hub differs and stays; pass --overwrite_readme to replace it.")
        if not files:
            logger.info("The Hub is up to date: %s", url)
        elif create_pr and (pull_request := find_pull_request(api, repo_id, folder, files)):
            url, commit = pull_request
            logger.info("A pull request with these files is there already: %s", url)
        else:
            stale = [*filter_repo_objects(further, allow_patterns=["onnx/*", *RESULT_FILES])] if retrained else []
            added = [CommitOperationAdd(file, folder / file) for file in files]
            done = api.create_commit(
                repo_id,
                [*added, *(CommitOperationDelete(file, is_folder=False) for file in stale)],
                commit_message="Publish the model",
                revision=revision,
                create_pr=create_pr,
                parent_commit=commit,
            )
            url, commit = done.pr_url or done.commit_url, done.oid
            logger.info("Pushed %d files in one commit: %s", len(files), url)
            if stale:
                logger.info("Deleted what was made from other weights: %s.", ", ".join(stale))
    load_back(folder, repo_id, commit, api.endpoint)
    logger.info("Loaded it back from the Hub in a fresh process: its outputs are those of the local folder.")
    return url, commit


def load_back(folder: Path, repo_id: str, revision: str, endpoint: str) -> None:
    """Load the model from the Hub as a stranger would, past all caches, and compare its outputs with the folder's.

    Raises: HubError: if one, or one of its ONNX models, differs by more than 1e-6.
    """
    with scratch_folder(Path(gettempdir()), "tinybert-publish-") as scratch:
        env = os.environ | {"HF_HUB_CACHE": f"{scratch}/hub", "HF_MODULES_CACHE": f"{scratch}/modules"}
        env |= {"HF_ENDPOINT": endpoint, "PYTHONSAFEPATH": "1"}  # else Python imports from the script's folder
        stranger = str(Path(__file__).with_name("stranger.py"))
        command = [sys.executable, stranger, repo_id, revision, str(folder.resolve())]
        done = subprocess.run(command, env=env, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise HubError(
            f"The files are on the Hub, but {repo_id} at {revision} does not load as the local model: {reason}. Run the "
            "same command again; if it stays so, do not use the copy on the Hub."
        )


def push_space(folder: Path, space_id: str, repo_id: str, commit: str) -> str:
    """Put a page from `build_space` on the Hub as a static Space, in one commit, and return the Space's address.

    It loads the model `repo_id` at `commit`. As with `push`, the same call is safe after any fault.

    Raises: HubError: as `push`. InputError: if browsers cannot load the model from there, or the Space is another one.
    """
    api = HfApi()
    with hub_errors_explained(api.endpoint, "the page"):
        model = api.model_info(repo_id, revision=commit)
        if model.private:
            raise InputError(f"{repo_id} is private: the visitors of --space could not load it.")
        if BROWSER_MODEL not in {sibling.rfilename for sibling in model.siblings or []}:
            raise InputError(f"{repo_id} has no {BROWSER_MODEL}, which the page of --space runs; add --onnx.")
        api.create_repo(space_id, repo_type="space", space_sdk="static", exist_ok=True)
        info = api.space_info(space_id)
        present = {sibling.rfilename for sibling in info.siblings or []}
        new = present <= {".gitattributes", "README.md", "index.html", "style.css"}  # the Hub's own page is replaced
        if info.sdk not in (None, "static") or not (new or SPACE_SETTINGS in present):
            raise InputError(f"{space_id} is taken by another Space; choose another --space.")
        url = f"{api.endpoint}/spaces/{space_id}"
        done = api.upload_folder(
            repo_id=space_id,
            repo_type="space",
            folder_path=folder,
            ignore_patterns=BUILD_RECORD,
            commit_message=f"Search with {repo_id}",
            parent_commit=info.sha,
        )
        logger.info("The page is up to date: %s" if done.oid == info.sha else "Pushed the page in one commit: %s", url)
        return url


def compare(api: HfApi, repo_id: str, revision: str, folder: Path) -> tuple[dict[str, bool], list[str]]:
    """The files that are not on the Hub as they are in the folder (True where it has another one), and its further files."""
    found = api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder)
    files = dict.fromkeys(found.extra_paths, False) | {other["path"]: True for other in found.mismatches}
    files.pop(BUILD_RECORD, None)
    return files, found.missing_paths


def find_pull_request(api: HfApi, repo_id: str, folder: Path, files: Iterable[str]) -> tuple[str, str] | None:
    """Address and commit of a recent pull request with these very files: a call whose answer was lost opened it."""
    pull_requests = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
    for ref in sorted(pull_requests, key=lambda ref: int(ref.name), reverse=True)[:5]:
        if not set(files) & set(compare(api, repo_id, ref.target_commit, folder)[0]):
            return f"{api.endpoint}/{repo_id}/discussions/{ref.name}", ref.target_commit
    return None


@contextmanager
def hub_errors_explained(endpoint: str, sent: str = "the model") -> Iterator[None]:
    """Turn what a failing or silent Hub, or the way to it, raises into a HubError that says what to do."""
    try:
        with limited_silence():
            yield
    except InputError:
        raise
    except (httpx.HTTPError, ValueError, RuntimeError, LocalEntryNotFoundError) as error:
        # huggingface_hub wraps what failed in an upload to LFS, in a download, or in the check of a card.
        direct = isinstance(error, (httpx.HTTPError, json.JSONDecodeError))
        cause = error if direct else error.__cause__
        if not isinstance(cause, (httpx.HTTPError, json.JSONDecodeError)):
            raise
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        reason = getattr(cause, "server_message", None) or f"{type(cause).__name__}: {cause}".splitlines()[0]
        if isinstance(error, ValueError) and not direct:
            reason = " ".join(str(error).split())  # what is wrong in the card
        fault = "Correct what it names" if 400 <= status < 500 else "Check the network, or wait a few minutes"
        raise HubError(
            f"{endpoint} did not accept {sent} ({f'{status}, ' if status else ''}{reason}). "
            f"{REMEDIES.get(status, fault)}, then run the same command again. The local folder is intact."
        ) from error
