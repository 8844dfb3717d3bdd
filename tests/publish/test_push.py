"""The push: one commit, safe to repeat after any fault.

    python -m pytest tests/publish/test_push.py -q

The command runs in this process where its faults are tested, so that each costs milliseconds, and in one of its own
once. Only where it says so is a push followed by the real verification, which takes seconds; test_load_back.py tests that.
"""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.utils import close_session, httpx
from loopback_hub import READ_TOKEN, WRITE_TOKEN, LoopbackHub
from publishing import EVALUATION, REPO, RETRIEVAL, ROOT, SPACE, Command, contents
from safetensors.torch import load_file, save_file

import tinybert_hf.publish.push
from tinybert_hf.publish.push import HubError, hub_errors_explained
from tinybert_hf.publish.space import BROWSER_MODEL

pytestmark = pytest.mark.slow  # each test builds a folder, and together they take a while


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--repo_id", "tiny"], "names no owner"),
        (["--repo_id", "tester/a b"], "Repo id must use alphanumeric chars"),
        ([], "Pass --repo_id to push"),
        (["--output_dir", "x", "--private"], "pass --repo_id too"),
        (["--repo_id", REPO, "--space", "demo"], "--space demo names no owner"),
        (["--repo_id", REPO, "--space", SPACE, "--private"], "Leave one of them out"),
        (["--space", SPACE], "Pass --repo_id to push"),
    ],
)
def test_a_wrong_argument_is_named(command: Command, argv: list[str], message: str) -> None:
    assert message in command("--model", "x", *argv)


def test_the_command_pushes_and_verifies(encoder: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    """In a process of its own, from the flags to the model loaded back."""
    argv = [sys.executable, ROOT / "push_to_hub.py", "--model", encoder, "--repo_id", REPO, "--private"]
    env = hub.env(tmp_path / "home")
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPO}/commit/{hub.commits(REPO)[0].id}" in done.stdout
    assert "Loaded it back from the Hub" in done.stderr
    assert hub.repos["model", REPO].private


def test_a_lost_connection_leaves_the_hub_and_the_model_as_they_were(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    before = contents(encoder)
    online.drop_next("POST", "/commit/", during="request")
    assert "run the same command again" in command("--model", encoder, "--repo_id", REPO)
    assert contents(encoder) == before
    assert len(online.commits(REPO)) == 1


def test_a_push_is_one_commit_of_exactly_the_folder_and_no_second_one(
    encoder: Path, tmp_path: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO, "--output_dir", tmp_path / "published"]
    assert "in one commit" in command(*argv)
    folder = contents(tmp_path / "published")
    del folder[".build.json"]
    on_the_hub = online.files(REPO)
    del on_the_hub[".gitattributes"]
    assert on_the_hub == folder
    assert not online.repos["model", REPO].private
    commits = online.commits(REPO)
    assert len(commits) == 2  # with the Hub's own first one
    assert "up to date" in command(*argv)
    assert online.commits(REPO) == commits


def test_only_what_changed_is_committed_and_other_files_stay(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    command("--model", encoder, "--repo_id", REPO)
    online.add_commit(REPO, {"onnx/model.onnx": b"someone else's"})
    (encoder / "evaluation_other.json").write_text(json.dumps(EVALUATION | {"data": "other"}))
    assert "Pushed 2 files" in command("--model", encoder, "--repo_id", REPO, "--overwrite_readme")
    assert {"onnx/model.onnx", "evaluation_other.json"} < set(online.files(REPO))


def test_a_readme_on_the_hub_stays_unless_asked(encoder: Path, online: LoopbackHub, command: Command) -> None:
    online.add_repo("model", REPO, {"README.md": b"# Written by hand\n"})
    assert "README.md on the Hub differs and stays" in command("--model", encoder, "--repo_id", REPO)
    assert online.files(REPO)["README.md"] == b"# Written by hand\n"
    assert "model.safetensors" in online.files(REPO)
    assert "Pushed 1 files" in command("--model", encoder, "--repo_id", REPO, "--overwrite_readme")
    assert online.files(REPO)["README.md"].startswith(b"---\nbase_model: someone/base")


def test_a_pull_request_to_someone_elses_model_is_opened_once(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    online.add_repo("model", "other/tiny", {"README.md": b"theirs"})
    argv = ["--model", encoder, "--repo_id", "other/tiny", "--create_pr"]
    online.drop_next("POST", "/commit/", during="response")  # it is opened, and nobody hears of it
    assert "run the same command again" in command(*argv)
    url = f"{online.url}/other/tiny/discussions/1"
    assert f"is there already: {url}" in command(*argv)
    assert set(online.repos["model", "other/tiny"].refs) == {"main", "refs/pr/1"}
    assert set(online.files("other/tiny")) == {"README.md"}
    assert "model.safetensors" in online.files("other/tiny", "refs/pr/1")
    (encoder / "evaluation_beir.json").unlink()
    (encoder / "evaluation_other.json").write_text(json.dumps(EVALUATION))
    assert f"{online.url}/other/tiny/discussions/2" in command(*argv)  # other files are another proposal


def test_a_push_leaves_the_time_out_of_the_process_as_it_was(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    session = get_session()  # of every other user of huggingface_hub too
    session.timeout = httpx.Timeout(17)
    hooks = list(session.event_hooks["request"])
    command("--model", encoder, "--repo_id", REPO)
    assert get_session() is session
    assert session.timeout == httpx.Timeout(17) and session.event_hooks["request"] == hooks


def test_a_push_to_a_revision_leaves_main_alone(encoder: Path, online: LoopbackHub, command: Command) -> None:
    first = online.add_repo("model", REPO, {})
    command("--model", encoder, "--repo_id", REPO, "--revision", "v1/x")
    assert online.commits(REPO)[0].id == first
    assert "model.safetensors" in online.files(REPO, "v1/x")
    assert "up to date" in command("--model", encoder, "--repo_id", REPO, "--revision", "v1/x")


def test_another_kind_of_model_and_a_public_one_are_not_pushed_over(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    online.add_repo("model", REPO, {"config.json": b'{"model_type": "bert"}'})
    assert "is taken by a bert model" in command("--model", encoder, "--repo_id", REPO)
    online.add_repo("model", "tester/damaged", {"config.json": b"{"})
    left = command("--model", encoder, "--repo_id", "tester/damaged")
    assert re.match(r"error: \S+config\.json is no valid JSON", left)
    assert "exists and is public" in command("--model", encoder, "--repo_id", REPO, "--private")
    assert len(online.commits(REPO)) == 1


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("", REPO, "401.*hf auth login"),
        ("hf_expired", REPO, "401.*hf auth login"),
        (READ_TOKEN, REPO, "403.*Use a token that may write"),
        (WRITE_TOKEN, "other/new", "403.*a --repo_id of your own"),
        (WRITE_TOKEN, "other/tiny", "403.*--create_pr for someone else's"),
    ],
)
def test_who_may_not_push_is_told_what_to_do(
    encoder: Path,
    online: LoopbackHub,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo_id: str,
    message: str,
) -> None:
    online.add_repo("model", "other/tiny", {})
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert re.search(f"^error: .*{message}", command("--model", encoder, "--repo_id", repo_id))
    assert len(online.repos) == 1 and online.files("other/tiny") == {}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda hub: hub.fail_next("POST", "/repos/create"), "503"),
        (lambda hub: hub.drop_next("POST", "/repos/create", during="response"), "RemoteProtocolError"),
        (lambda hub: hub.fail_next("GET", f"/api/models/{REPO}"), "503"),
        (lambda hub: hub.fail_next("GET", "/tree/", 400), "400, Injected fault"),
        (lambda hub: hub.fail_next("POST", "/validate-yaml"), "JSONDecodeError"),
        (lambda hub: hub.fail_next("POST", "/validate-yaml", 400), "Invalid metadata in README.md"),
        (lambda hub: hub.fail_next("PUT", "/lfs-storage/", 403), "403"),
        (lambda hub: hub.fail_next("POST", "/commit/"), "503"),
        (lambda hub: hub.fail_next("POST", "/commit/", 412), "412.*look at their change"),
        (lambda hub: hub.drop_next("POST", "/commit/"), "ReadError"),
        (lambda hub: hub.drop_next("POST", "/commit/", during="response"), "RemoteProtocolError"),
    ],
)
def test_after_a_fault_the_same_command_succeeds(
    encoder: Path,
    tmp_path: Path,
    online: LoopbackHub,
    command: Command,
    fault: Callable[[LoopbackHub], None],
    message: str,
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO, "--output_dir", tmp_path / "published"]
    fault(online)
    left = command(*argv)
    assert left.startswith("error: ") and re.search(message, left)
    folder = contents(tmp_path / "published")
    assert re.search("in one commit|up to date", command(*argv))
    assert contents(tmp_path / "published") == folder
    assert len(online.commits(REPO)) == 2 and "model.safetensors" in online.files(REPO)


def test_a_hub_that_is_away_or_silent_is_named(
    encoder: Path, online: LoopbackHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinybert_hf.hub, "SECONDS_OF_SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert f"{url} did not accept the model (ReadTimeout" in command("--model", encoder, "--repo_id", REPO)
        with pytest.raises(HubError, match="ReadTimeout"), hub_errors_explained(url):
            HfApi(url).model_info(REPO)  # which switches the session's own limit off
    close_session()
    assert "ConnectError" in command("--model", encoder, "--repo_id", REPO)


def test_a_second_push_replaces_a_card_that_nobody_edited_and_drops_results_of_old_weights(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO]
    command(*argv)
    first = online.files(REPO)["README.md"]
    retrain(encoder)
    (encoder / "evaluation_beir.json").unlink()
    (encoder / "retrieval_summary.json").write_text(json.dumps(RETRIEVAL | {"steps": 24680}))
    commits = online.commits(REPO)
    assert "Deleted what was made from other weights: evaluation_beir.json." in command(*argv)
    assert online.commits(REPO)[1:] == commits
    second = online.files(REPO)["README.md"]
    assert b"24,680 steps" in second and b"24,680 steps" not in first and b"beir" not in second

    online.add_commit(REPO, {"README.md": second.replace(b"Limits", b"Cautions")})
    (encoder / "retrieval_summary.json").write_text(json.dumps(RETRIEVAL | {"steps": 13579}))
    assert "README.md on the Hub differs and stays" in command(*argv)
    assert b"Cautions" in online.files(REPO)["README.md"]


# ---- ONNX on the Hub ----


def retrain(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_card_tells_of_the_onnx_models_that_stay_on_the_hub(
    encoder: Path, tmp_path: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO, "--output_dir", tmp_path / "published"]
    command(*argv)
    cosines = {"onnx/model.onnx": 0.99997, BROWSER_MODEL: 0.99531}
    online.add_commit(REPO, dict.fromkeys(cosines, b"ONNX") | {"onnx/cosines.json": json.dumps(cosines).encode()})
    for more in ({"data": "one"}, {"data": "other"}):
        (encoder / "evaluation_beir.json").write_text(json.dumps(EVALUATION | more))
        command(*argv)
        card = online.files(REPO)["README.md"].decode()
        assert f"| `{BROWSER_MODEL}` | int8 | 0.9953 |" in card and f"Search in `{more['data']}`" in card
        assert "\n- transformers.js\n" in card and (tmp_path / "published" / "README.md").read_text() == card
        assert "up to date" in command(*argv)

    retrain(encoder)
    assert f"other weights: onnx/cosines.json, onnx/model.onnx, {BROWSER_MODEL}." in command(*argv)
    assert "onnx" not in online.files(REPO)["README.md"].decode()


def test_onnx_models_of_other_weights_are_deleted_in_the_same_commit(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO]
    command(*argv)
    others = ("onnx/model.onnx", "onnx/model_fp16.onnx", BROWSER_MODEL, "notes.txt")
    online.add_commit(REPO, dict.fromkeys(others, b"of somebody"))  # no export, which takes ten seconds
    before = online.files(REPO)
    (encoder / "evaluation_beir.json").write_text(json.dumps(EVALUATION | {"data": "other"}))
    assert "Deleted" not in command(*argv)  # the weights are the same
    assert before.keys() == online.files(REPO).keys()

    retrain(encoder)
    commits = online.commits(REPO)
    stale = "onnx/model.onnx, onnx/model_fp16.onnx, onnx/model_quantized.onnx"
    assert f"Deleted what was made from other weights: {stale}." in command(*argv)
    assert online.commits(REPO)[1:] == commits
    assert set(online.files(REPO)) == {file for file in before if not file.startswith("onnx/")}

    online.add_commit(REPO, {"onnx/model_fp16.onnx": b"someone else's"})
    retrain(encoder)
    assert "other weights: onnx/model_fp16.onnx." in command(*argv, "--onnx")
    assert {BROWSER_MODEL, "onnx/model.onnx"} < set(online.files(REPO))
