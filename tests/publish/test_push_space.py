"""The page of a Space, published. What the page does is in test_space.py.

python -m pytest tests/publish/test_push_space.py -q
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from loopback_hub import LoopbackHub
from publishing import EVALUATION, REPO, SPACE, Command, contents

from tinybert_hf.errors import InputError
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.space import BROWSER_MODEL, SPACE_FILES, build_space

pytestmark = pytest.mark.slow  # each test builds a folder, and together they take a while


def settings(files: dict[str, bytes]) -> dict[str, str]:
    """What the page of a Space was built with."""
    return json.loads(re.search(r"\{.*\}", files["settings.js"].decode(), re.DOTALL)[0])


def push_with_onnx(folder: Path, hub: LoopbackHub, command: Command) -> list[str | Path]:
    """A model on the Hub with something in the place of its ONNX model, which takes seconds to make.

    Returns: the arguments that publish its page.
    """
    argv: list[str | Path] = ["--model", folder, "--repo_id", REPO]
    command(*argv)
    hub.add_commit(REPO, {BROWSER_MODEL: b"ONNX"})
    return [*argv, "--space", SPACE]


def test_a_space_is_one_commit_of_a_static_page_that_loads_the_pushed_commit(
    encoder: Path, tmp_path: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO, "--space", SPACE]
    assert "Pushed the page in one commit" in command(*argv, "--onnx", "--output_dir", tmp_path / "published")
    space, files = online.repos["space", SPACE], online.files(SPACE, repo_type="space")
    assert space.sdk == "static" and not space.private
    assert len(space.commits) == 2  # with the Hub's own first one
    kept = contents(tmp_path / "published-space")
    del kept[".build.json"], files[".gitattributes"]
    assert files == kept
    assert set(files) == {"README.md", "settings.js"} | {path.name for path in SPACE_FILES.iterdir()}
    card = SpaceCard(files["README.md"].decode()).data
    assert (card.sdk, card.models, card.title) == ("static", [REPO], "demo")
    assert len(card.short_description) <= 60  # the Hub takes no more
    expected = {"model": REPO, "host": online.url, "npm": "https://cdn.jsdelivr.net/npm"}
    assert expected.items() <= settings(files).items()
    assert settings(files)["revision"] == online.commits(REPO)[0].id

    assert "The page is up to date" in command(*argv)  # and the card still tells of the ONNX models
    assert len(space.commits) == 2
    (encoder / "evaluation_other.json").write_text(json.dumps(EVALUATION))
    command(*argv)
    assert settings(online.files(SPACE, repo_type="space"))["revision"] == online.commits(REPO)[0].id
    assert len(space.commits) == 3


def test_a_space_beside_a_pull_request_loads_what_is_proposed(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    online.add_repo("model", "other/tiny", {"README.md": b"theirs"})
    argv = ["--model", encoder, "--repo_id", "other/tiny", "--create_pr"]
    command(*argv)
    online.add_commit("other/tiny", {BROWSER_MODEL: b"ONNX"}, "refs/pr/1")
    assert "Pushed the page in one commit" in command(*argv, "--space", SPACE)
    proposed = online.repos["model", "other/tiny"].refs["refs/pr/1"]
    assert settings(online.files(SPACE, repo_type="space"))["revision"] == proposed.id


def test_a_page_is_built_to_try_it_without_the_hub(encoder: Path, tmp_path: Path, command: Command) -> None:
    argv = ["--model", encoder, "--output_dir", tmp_path / "published", "--space", SPACE]
    assert "has no onnx/model_quantized.onnx, which the page runs; add --onnx" in command(*argv)
    printed = command(*argv, "--onnx")
    assert f"--directory {tmp_path}\nand open http://127.0.0.1:8000/published-space/" in printed
    built = settings(contents(tmp_path / "published-space"))
    assert (built["host"], built["path"], built["model"]) == ("../", "{model}/", "published")


def test_a_page_is_built_again_but_not_over_one_that_was_edited(encoder: Path, tmp_path: Path) -> None:
    model = build_folder(encoder, tmp_path / "published", REPO)
    (model / BROWSER_MODEL).parent.mkdir()
    (model / BROWSER_MODEL).write_bytes(b"ONNX")
    for _ in range(2):
        page = build_space(tmp_path / "page", SPACE, model, None)
    (page / "style.css").write_text("mine")
    with pytest.raises(InputError, match=r"holds style\.css, which was not built here, or was edited"):
        build_space(tmp_path / "page", SPACE, model, None)
    assert (page / "style.css").read_text() == "mine"


def test_a_space_whose_model_browsers_cannot_load_is_refused(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO, "--space", SPACE]
    assert f"{REPO} has no {BROWSER_MODEL}, which the page of --space runs; add --onnx" in command(*argv)
    push_with_onnx(encoder, online, command)
    online.repos["model", REPO].private = True
    assert f"{REPO} is private" in command(*argv)
    assert ("space", SPACE) not in online.repos


@pytest.mark.parametrize(
    ("sdk", "files"), [("gradio", {}), ("static", {"game.js": b"mine"}), ("docker", {"settings.js": b"mine"})]
)
def test_another_space_is_not_overwritten(
    encoder: Path, online: LoopbackHub, command: Command, sdk: str, files: dict[str, bytes]
) -> None:
    online.add_repo("space", SPACE, files, sdk=sdk)
    argv = push_with_onnx(encoder, online, command)
    assert f"{SPACE} is taken by another Space" in command(*argv)
    assert online.files(SPACE, repo_type="space") == files


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda hub: hub.fail_next("POST", "/repos/create", 403, times=2), "403.*--space"),
        (lambda hub: hub.fail_next("GET", "/api/spaces/"), "503"),
        (lambda hub: hub.fail_next("POST", "/api/spaces/.*/preupload/", 400), "400, Injected fault"),
        (lambda hub: hub.fail_next("POST", "/api/spaces/.*/commit/"), "503"),
        (lambda hub: hub.drop_next("POST", "/api/spaces/.*/commit/", during="response"), "RemoteProtocolError"),
    ],
)
def test_after_a_fault_the_same_command_publishes_the_page(
    encoder: Path, online: LoopbackHub, command: Command, fault: Callable[[LoopbackHub], None], message: str
) -> None:
    argv = push_with_onnx(encoder, online, command)
    fault(online)
    left = command(*argv)
    assert left.startswith("error: ") and re.search(message, left)
    assert re.search("Pushed the page|page is up to date", command(*argv))
    assert len(online.commits(SPACE, repo_type="space")) == 2
