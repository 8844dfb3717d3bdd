"""The folder that is built of a trained model.

python -m pytest tests/publish/test_folder.py -q
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publishing import REPO, RETRIEVAL, SENTENCE_TRANSFORMERS_FILES, Command, contents
from safetensors.torch import load_file, save_file

import tinybert_hf.publish.folder
from tinybert_hf.errors import InputError
from tinybert_hf.publish.folder import build_folder

pytestmark = pytest.mark.slow  # each test builds a folder

CODE_FILES = {"configuration_tinybert.py", "modeling_tinybert.py", "pipeline_tinybert.py"}
MODEL_FILES = {
    "README.md",
    "examples.json",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_build_holds_the_model_and_nothing_else_of_the_training(encoder: Path, tmp_path: Path) -> None:
    before = contents(encoder)
    folder = build_folder(encoder, tmp_path / "published", REPO)
    results = {"sentiment_summary.json", "retrieval_summary.json", "evaluation_beir.json"}
    assert set(contents(folder)) == MODEL_FILES | CODE_FILES | SENTENCE_TRANSFORMERS_FILES | results | {".build.json"}
    assert contents(encoder) == before
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    assert "semantic-search" in config["custom_pipelines"]


def test_an_untouched_build_is_replaced_and_is_the_same(encoder: Path, tmp_path: Path) -> None:
    first = contents(build_folder(encoder, tmp_path / "published", REPO))
    assert contents(build_folder(encoder, tmp_path / "published", REPO)) == first
    assert contents(build_folder(tmp_path / "published", tmp_path / "again", REPO)) == first
    assert {path.name for path in tmp_path.iterdir()} == {"model", "published", "again"}


def test_an_output_dir_that_is_a_file_or_holds_a_link_is_left_alone(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(encoder)
    (tmp_path / "empty").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(InputError):
            build_folder(encoder, tmp_path / name, REPO)
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "folder" / "link").is_symlink()
    assert build_folder(encoder, tmp_path / "empty", REPO) == tmp_path / "empty"


@pytest.mark.parametrize("file", ["README.md", "my_notes.txt"])
def test_what_the_user_wrote_is_not_overwritten(encoder: Path, tmp_path: Path, file: str) -> None:
    folder = build_folder(encoder, tmp_path / "published", REPO)
    (folder / file).write_text("mine")
    before = contents(folder)
    with pytest.raises(InputError, match=file):
        build_folder(encoder, folder, REPO)
    assert contents(folder) == before
    before = contents(encoder)
    with pytest.raises(InputError, match="was not built here"):
        build_folder(folder, encoder, REPO)  # training's own output
    assert contents(encoder) == before


def test_a_card_of_ones_own_goes_along(encoder: Path, tmp_path: Path) -> None:
    (encoder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    folder = build_folder(encoder, tmp_path / "published", REPO)
    assert (folder / "README.md").read_bytes() == (encoder / "README.md").read_bytes()


def test_an_interrupted_build_leaves_nothing_half_made(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(build_folder(encoder, tmp_path / "published", REPO))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tinybert_hf.publish.folder, "render_card", interrupt)
    for name in ("published", "other"):
        with pytest.raises(KeyboardInterrupt):
            build_folder(encoder, tmp_path / name, REPO)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "published"}
    assert contents(tmp_path / "published") == before


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def make_bert(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write(name: str, content: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "it has no config.json. Finish its training first, or .* checkpoint-10"),
        (remove("model.safetensors"), "it has no .*safetensors"),
        (remove("tokenizer.json"), "it has no tokenizer.json"),
        (lambda folder: (folder / "chat_template.jinja").symlink_to("/etc/hostname"), "chat_template.jinja is a link"),
        (make_bert, "holds a BertModel model, none of TinyBertModel"),
        (drop_a_weight, "its weights lack "),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
            "Could not load the model .* from this folder: ",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "Could not load the model .* from this folder: "),
        (lambda folder: (folder / "retrieval_summary.json").write_text("{"), "is no valid JSON"),
        (lambda folder: (folder / "retrieval_summary.json").write_text("{}"), "is incomplete"),
        (lambda folder: (folder / "evaluation_beir.json").write_text("{}"), "is incomplete"),
        (write("retrieval_summary.json", []), "model is incomplete or wrong"),
        (write("retrieval_summary.json", RETRIEVAL | {"arguments": "x"}), "model is incomplete or wrong"),
        (write("retrieval_summary.json", RETRIEVAL | {"seconds": "x"}), "model is incomplete or wrong"),
        (write("retrieval_summary.json", RETRIEVAL | {"stage": "\ud800"}), "model is incomplete or wrong .*surrogates"),
        (write("examples.json", [5]), "model is incomplete or wrong"),
        (write("examples.json", []), "model is incomplete or wrong"),
        (write("config.json", [1]), "Could not load the model .* from this folder: "),
        (shutil.rmtree, "it has no config.json"),
    ],
)
def test_what_cannot_be_published_is_named(
    encoder: Path, tmp_path: Path, command: Command, damage: Callable[[Path], None], message: str
) -> None:
    damage(encoder)
    assert re.search(message, command("--model", encoder, "--output_dir", tmp_path / "published"))
    assert not (tmp_path / "published").exists()


def test_the_examples_of_a_classifier_may_be_longer_than_it_reads(classifier: Path, tmp_path: Path) -> None:
    write("examples.json", [{"text": "music " * 40}])(classifier)
    assert "music music" in (build_folder(classifier, tmp_path / "published", REPO) / "README.md").read_text()


def test_a_classifier_is_not_described_to_sentence_transformers(classifier: Path, tmp_path: Path) -> None:
    folder = build_folder(classifier, tmp_path / "published", REPO)
    assert SENTENCE_TRANSFORMERS_FILES.isdisjoint(contents(folder))
    assert "sentence-transformers" not in (folder / "README.md").read_text()


def test_a_file_of_examples_with_other_columns_or_without_texts_is_named(
    encoder: Path, classifier: Path, tmp_path: Path, command: Command
) -> None:
    own = tmp_path / "own.csv"
    for model, content, message in (
        (encoder, "question,answer\nhow,so\n", "has no column 'query'; it has question, answer. Rename one of these."),
        (encoder, "query,answer\nhow,\n", "has no row with text in query, answer"),
        (classifier, "query,answer\nhow,so\n", "has no column 'text'"),
    ):
        own.write_text(content)
        assert message in command("--model", model, "--output_dir", tmp_path / "published", "--examples", own)
    assert not (tmp_path / "published").exists()


def test_settings_of_one_call_and_what_somebody_added_are_not_published(encoder: Path, tmp_path: Path) -> None:
    path = encoder / "tokenizer_config.json"
    own = json.loads(path.read_text())
    added = {
        "max_length": 9,
        "stride": 2,
        "is_local": True,
        "auto_map": {"AutoTokenizer": [None, "a/b--c.D"]},
        "key": "secret",
    }
    path.write_text(json.dumps(own | added))
    (encoder / "chat_template.jinja").write_text("secret")
    folder = build_folder(encoder, tmp_path / "published", REPO)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert not added.keys() & settings.keys()
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_max_length"] == 32
    assert not any(b"secret" in content for content in contents(folder).values())


def test_an_encoder_keeps_no_labels_of_stage_one(encoder: Path, tmp_path: Path) -> None:
    path = encoder / "config.json"
    labels = {"id2label": {"0": "bad", "1": "good", "2": "fine"}, "label2id": {"bad": 0, "good": 1, "fine": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))
    published = json.loads((build_folder(encoder, tmp_path / "published", REPO) / "config.json").read_text())
    assert not labels.keys() & published.keys()
