"""The publish command checks its flags before it works, and passes all of them on.

python -m pytest tests/cli/test_publish_command.py -q
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
from command_line import tinybert

from tinybert_hf.publish import folder, push, space
from tinybert_hf.publish.model_card import Origin


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Instead of building and pushing, what would have been built and pushed."""
    made: list[tuple[Any, ...]] = []

    def build_folder(model: Path, output_dir: Path, *arguments: Any) -> Path:
        made.append(("folder", model, *arguments))
        return output_dir.resolve()

    signature = inspect.signature(push.push)

    def push_(*given: Any, **named: Any) -> tuple[str, str]:
        options = signature.bind(*given, **named).arguments
        del options["folder"]
        made.append(("push", options))
        return "https://hub/commit", "abc"

    def build_space(output_dir: Path, *arguments: Any) -> Path:
        made.append(("space", output_dir.name, *arguments))
        return output_dir

    monkeypatch.setattr(folder, "build_folder", build_folder)
    monkeypatch.setattr(push, "push", push_)
    monkeypatch.setattr(space, "build_space", build_space)
    monkeypatch.setattr(push, "push_space", lambda *arguments: f"https://hub/spaces/{arguments[1]}")
    monkeypatch.chdir(tmp_path)
    return made


def test_a_push_passes_every_flag_on_and_prints_the_address(calls: list[tuple[Any, ...]]) -> None:
    flags = [
        "--license",
        "mit",
        "--language",
        "de",
        "nl",
        "--base_model",
        "a/b",
        "--dataset",
        "c/d",
        "--examples",
        "rows.csv",
    ]
    flags += ["--onnx", "--private", "--create_pr", "--revision", "dev", "--overwrite_readme"]
    done = tinybert("publish", "--model", "m", "--repo_id", "me/model", *flags)
    assert done == (0, "https://hub/commit\n", "")
    options = {"repo_id": "me/model", "private": True, "create_pr": True, "revision": "dev", "overwrite_readme": True}
    assert calls == [
        ("folder", Path("m"), "me/model", Origin("mit", ["de", "nl"], "a/b", ["c/d"]), True, Path("rows.csv")),
        ("push", options),
    ]


def test_without_a_repository_the_folder_is_built_and_kept(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").touch()
    done = tinybert("publish", "--model", "m", "--output_dir", "out")
    assert done == (0, "Built out: README.md\n", "")
    assert calls == [("folder", Path("m"), "out", Origin(), False, None)]


def test_a_page_is_pushed_with_the_model_or_built_to_be_tried_here(
    calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    done = tinybert("publish", "--model", "m", "--repo_id", "me/model", "--space", "me/demo")
    assert done == (0, "https://hub/commit\nhttps://hub/spaces/me/demo\n", "")
    name, _, model, pushed = calls[-1][1:]
    assert (name, model.name, pushed) == ("model-space", "model", ("me/model", "abc"))

    done = tinybert("publish", "--model", "m", "--output_dir", "out", "--space", "me/demo")
    assert f"python -m http.server --bind 127.0.0.1 --directory {tmp_path}\n" in done.out
    assert done.out.endswith("and open http://127.0.0.1:8000/out-space/\n")
    assert calls[-1][-1] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Pass --repo_id to push to the Hub, or --output_dir to build the folder, or both."),
        (["--output_dir", "o", "--private"], "need the Hub: pass --repo_id too."),
        (["--output_dir", "o", "--revision", "dev"], "need the Hub: pass --repo_id too."),
        (["--repo_id", "model"], "--repo_id model names no owner; pass OWNER/NAME."),
        (["--repo_id", "me//model"], "--repo_id me//model: Repo id must be in the form"),
        (["--repo_id", "me/model", "--space", "demo"], "--space demo names no owner; pass OWNER/NAME."),
        (["--repo_id", "me/model", "--space", "me/demo", "--private"], "--private hides it. Leave one of them out."),
    ],
)
def test_flags_that_do_not_fit_are_named_before_any_work(
    flags: list[str], message: str, calls: list[tuple[Any, ...]]
) -> None:
    done = tinybert("publish", "--model", "m", *flags)
    assert (done.status, done.out, calls) == (1, "", [])
    assert done.err.startswith("error: ") and message in done.err
