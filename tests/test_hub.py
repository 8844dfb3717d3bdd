"""Publishing: the built folder, its card, the push, and what a stranger can do with the result.

    python -m pytest tests/test_hub.py -q

The command runs in this process where its faults are tested, so that each costs milliseconds, and in one of its own
once. Only where it says so is a push followed by the real verification, which takes seconds.
"""

import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
from huggingface_hub import ModelCard, SpaceCard, constants
from huggingface_hub.utils import close_session
from loopback_hub import READ_TOKEN, WRITE_TOKEN, LoopbackHub
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import tinybert_hf.hub
from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel
from tinybert_hf.hub import BROWSER_MODEL, SPACE_FILES, HubError, build_folder, load_back
from tinybert_hf.pipeline_tinybert import encode

ROOT = Path(__file__).parents[1]
REPO = "tester/tiny"
SPACE = "tester/demo"
SENTENCE = "a fast compiler for small machines"
CODE_FILES = {"configuration_tinybert.py", "modeling_tinybert.py", "pipeline_tinybert.py"}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
}


def summary(stage: str, data: dict[str, Any], results: dict[str, float], **arguments: Any) -> dict[str, Any]:
    """A run summary as training.Trainer writes it, with numbers that no run would give twice."""
    return {
        "stage": stage,
        "data": {"train_rows": 4321, "eval_rows": 765, "texts_per_row": 2} | data,
        "arguments": {
            "data": data["data"],
            "data_config": None,
            "eval_data": None,
            "eval_split": None,
            "model": None,
            "output_dir": f"outputs/{stage}",
            "learning_rate": 0.00071,
            "warmup_ratio": 0.13,
            "weight_decay": 0.017,
            "max_grad_norm": 1.9,
            "seed": 5,
        }
        | arguments,
        "parameters": 1,
        "steps": 1357,
        "epochs": 2.46,
        "rows_per_step": 97,
        "seconds": 4008.0,
        "best_step": 1234,
        "results": results,
        "history": [],
        "hardware": {
            "device": "cpu",
            "processor": "x86_64",
            "num_processes": 3,
            "threads_per_process": 11,
            "mixed_precision": "bf16",
        },
        "versions": {"python": "3.98.7", "torch": "2.87.6"},
    }


SENTIMENT = summary(
    "sentiment",
    {"data": "stanfordnlp/sst2", "labels": ["negative", "positive"]},
    {"accuracy": 0.8123, "f1_macro": 0.8045},
    eval_split="validation",
    model="someone/base",
    text_columns=["sentence"],
)
RETRIEVAL = summary(
    "retrieval",
    {"data": "pairs.jsonl"},
    {"loss": 1.0203, "nDCG@10": 0.5678, "RR@10": 0.5432},
    eval_data="held_out.jsonl",
    model="outputs/sentiment",
    temperature=0.057,
    teacher="someone/teacher",
    warm_start_epochs=7.0,
    warm_start_learning_rate=0.0043,
    negative_columns=["near", "far"],
)
EVALUATION = {
    "command": "python -m tinybert_hf.evaluation --model outputs/x --data beir/test",
    "data": "beir/test",
    "split": "test",
    "queries": 1011,
    "documents": 20022,
    "encode_seconds": 3.0,
    "results": {"model": {"nDCG@10": 0.4567, "R@100": 0.9012}, "BM25": {"nDCG@10": 0.3456, "R@100": 0.7891}},
}


@pytest.fixture
def encoder(model_folder: Path) -> Path:
    """The output of stage two, with what training leaves beside the model."""
    (model_folder / "checkpoint-10").mkdir()
    for leftover in ("checkpoint-10/optimizer.bin", "checkpoint-10/model.safetensors", ".lock", "notes.txt"):
        (model_folder / leftover).write_bytes(b"leftover")
    (model_folder / "runs").mkdir()
    for stage in (SENTIMENT, RETRIEVAL):
        (model_folder / f"{stage['stage']}_summary.json").write_text(json.dumps(stage))
    (model_folder / "evaluation_beir.json").write_text(json.dumps(EVALUATION))
    return model_folder


@pytest.fixture
def classifier(classifier_folder: Path) -> Path:
    """The output of stage one."""
    (classifier_folder / "sentiment_summary.json").write_text(json.dumps(SENTIMENT))
    return classifier_folder


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    """`python push_to_hub.py ...` in this process: "" and what it printed, or the message that it left with."""

    def run(*argv: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *(str(argument) for argument in argv)])
        try:
            runpy.run_path(str(ROOT / "push_to_hub.py"), run_name="__main__")
        except SystemExit as left:
            return capsys.readouterr().err if left.code == 2 else str(left.code)
        return capsys.readouterr().out

    return run


@pytest.fixture
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    """The Hub of this process, logged in; a push is not verified."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setattr(tinybert_hf.hub, "load_back", lambda *_: None)
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def model_index(card: ModelCard) -> list[tuple[str, str, float]]:
    return [(r.dataset_type, r.metric_name, r.metric_value) for r in card.data.eval_results or []]


# ---- The folder ----


def test_a_build_holds_the_model_and_nothing_else_of_the_training(encoder: Path, tmp_path: Path) -> None:
    before = contents(encoder)
    folder = build_folder(encoder, tmp_path / "published", REPO)
    results = {"sentiment_summary.json", "retrieval_summary.json", "evaluation_beir.json"}
    assert set(contents(folder)) == MODEL_FILES | CODE_FILES | SENTENCE_TRANSFORMERS_FILES | results | {
        ".build.json"
    }
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
        with pytest.raises(FileExistsError):
            build_folder(encoder, tmp_path / name, REPO)
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "folder" / "link").is_symlink()
    assert build_folder(encoder, tmp_path / "empty", REPO) == tmp_path / "empty"


@pytest.mark.parametrize("file", ["README.md", "my_notes.txt"])
def test_what_the_user_wrote_is_not_overwritten(encoder: Path, tmp_path: Path, file: str) -> None:
    folder = build_folder(encoder, tmp_path / "published", REPO)
    (folder / file).write_text("mine")
    before = contents(folder)
    with pytest.raises(FileExistsError, match=file):
        build_folder(encoder, folder, REPO)
    assert contents(folder) == before
    before = contents(encoder)
    with pytest.raises(FileExistsError, match="was not built here"):
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

    monkeypatch.setattr(tinybert_hf.hub, "render_card", interrupt)
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "it has no config.json. Finish its training first, or .* checkpoint-10"),
        (remove("model.safetensors"), "it has no .*safetensors"),
        (remove("tokenizer.json"), "it has no tokenizer.json"),
        (make_bert, "holds a BertModel model, none of TinyBertModel"),
        (drop_a_weight, "weights in .* are incomplete"),
        (lambda folder: (folder / "retrieval_summary.json").write_text("{"), "is no valid JSON"),
        (lambda folder: (folder / "retrieval_summary.json").write_text("{}"), "is incomplete"),
        (lambda folder: (folder / "evaluation_beir.json").write_text("{}"), "is incomplete"),
        (shutil.rmtree, "it has no config.json"),
    ],
)
def test_what_cannot_be_published_is_named(
    encoder: Path, tmp_path: Path, command: Command, damage: Callable[[Path], None], message: str
) -> None:
    damage(encoder)
    assert re.search(message, command("--model", encoder, "--output_dir", tmp_path / "published"))
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--repo_id", "tiny"], "names no owner"),
        (["--repo_id", "tester/a b"], "Repo id must use alphanumeric chars"),
        ([], "Pass --repo_id to push"),
        (["--output_dir", "x", "--private"], "pass --repo_id too"),
        (["--repo_id", REPO, "--space", "demo"], "--space demo names no owner"),
        (["--repo_id", REPO, "--space", SPACE, "--private"], "leave one out"),
        (["--space", SPACE], "Pass --repo_id to push"),
    ],
)
def test_a_wrong_argument_is_named(command: Command, argv: list[str], message: str) -> None:
    assert message in command("--model", "x", *argv)


# ---- The card ----


def test_the_model_index_holds_the_measured_numbers_of_this_model(
    encoder: Path, classifier: Path, tmp_path: Path
) -> None:
    card = ModelCard.load(build_folder(encoder, tmp_path / "a", REPO) / "README.md")
    assert model_index(card) == [
        ("beir/test", "nDCG@10", 0.4567),
        ("beir/test", "R@100", 0.9012),
        ("held_out.jsonl", "loss", 1.0203),
        ("held_out.jsonl", "nDCG@10", 0.5678),
        ("held_out.jsonl", "RR@10", 0.5432),
    ]
    assert (card.data.pipeline_tag, card.data.library_name) == ("feature-extraction", "transformers")
    card = ModelCard.load(build_folder(classifier, tmp_path / "b", REPO, license="mit") / "README.md")
    assert model_index(card) == [
        ("stanfordnlp/sst2", "accuracy", 0.8123),
        ("stanfordnlp/sst2", "f1_macro", 0.8045),
    ]
    assert (card.data.pipeline_tag, card.data.license) == ("text-classification", "mit")


def test_metadata_names_the_data_and_the_base_model_that_are_on_the_hub(
    encoder: Path, tmp_path: Path
) -> None:
    data = ModelCard.load(build_folder(encoder, tmp_path / "published", REPO) / "README.md").data
    assert data.datasets == ["stanfordnlp/sst2"]  # pairs.jsonl was a file
    assert data.base_model == "someone/base"
    assert data.language == "en" and {"semantic-search", "sentence-transformers"} < set(data.tags)
    from_scratch = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"model": None}}
    (encoder / "sentiment_summary.json").write_text(json.dumps(from_scratch))
    data = ModelCard.load(build_folder(encoder, tmp_path / "published", REPO) / "README.md").data
    assert data.base_model is None  # outputs/sentiment was a folder, though it looks like a Hub id


def test_the_card_tells_both_stages_from_their_summaries(encoder: Path, tmp_path: Path) -> None:
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    assert card.index("### Sentiment") < card.index("### Retrieval")
    facts = [
        "4,321 rows",
        "765 held out",
        "2.46 epochs",
        "1,357 steps of 97 rows",
        "1,234, was kept",
        "0.00071",
    ]
    facts += [
        "13% of the steps",
        "weight decay 0.017",
        "at most 1.9",
        "seed 5",
        "66.8 minutes",
        "3 x cpu",
        "bf16",
    ]
    facts += ["11 threads", "python 3.98.7", "temperature of 0.057", "`someone/base`", "`outputs/sentiment`"]
    facts += ["taught by `someone/teacher`", "7 epochs of the token embedding alone", "0.0043"]
    facts += ["train_retrieval.py", "--negative_columns near far", EVALUATION["command"], "20,022 documents"]
    facts += ["| this model | 0.457 | 0.901 |", "| BM25 | 0.346 | 0.789 |", "| 1.020 | 0.568 | 0.543 |"]
    assert [fact for fact in facts if fact not in card] == []
    assert "0.812" not in card  # stage one's accuracy is not this model's


def test_what_was_not_measured_is_said_and_not_invented(
    model_folder: Path, classifier_folder: Path, tmp_path: Path
) -> None:
    for source in (model_folder, classifier_folder):
        card = ModelCard.load(build_folder(source, tmp_path / f"{source.name}-published", REPO) / "README.md")
        assert "model-index" not in card.content and "model_name:" not in card.content
        assert "On held-out rows: not measured." in card.text
        assert "How it was trained is not recorded." in card.text
        results = card.text.split("## Results")[1].split("## Limits")[0]
        assert not re.search(r"\d", results)


def test_a_classifier_of_pairs_is_shown_with_a_pair(classifier: Path, tmp_path: Path) -> None:
    pairs = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"text_columns": ["premise", "hypothesis"]}}
    (classifier / "sentiment_summary.json").write_text(json.dumps(pairs))
    card = (build_folder(classifier, tmp_path / "published", REPO) / "README.md").read_text()
    assert "text_pair" in snippets(card)[0] and "other_texts" in snippets(card)[1]


# ---- What a stranger can do with it ----

# Prints the stranger's outputs and what every snippet of the cards prints.
STRANGER = """
import contextlib, io, json, sys
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
import torch

encoder, classifier, sentence, cards = json.loads(sys.argv[1])
remote = {"trust_remote_code": True}

def run(source, auto_class):
    tokenizer = AutoTokenizer.from_pretrained(source, **remote)
    with torch.inference_mode():
        return auto_class.from_pretrained(source, **remote).eval()(**tokenizer(sentence, return_tensors="pt"))

search = pipeline("semantic-search", model=encoder, **remote)
classify = pipeline("text-classification", model=classifier, **remote)
extract = pipeline("feature-extraction", model=encoder, **remote)
answers = {
    "embedding": run(encoder, AutoModel).pooler_output[0].tolist(),
    "classifier_embedding": run(classifier, AutoModel).pooler_output[0].tolist(),
    "logits": run(classifier, AutoModelForSequenceClassification).logits[0].tolist(),
    "hidden_states": extract(sentence)[0],
    "found": search(sentence, ["send mail", sentence], top_k=1),
    "probability": classify(sentence, top_k=None),
    "printed": [],
}
for card in cards:
    for snippet in card:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(snippet, {})
        answers["printed"].append(printed.getvalue())
print(json.dumps(answers))
"""


def check_as_a_stranger(
    encoder: str, classifier: str, folders: list[Path], home: Path, env: dict[str, str] | None
) -> None:
    """Everything that a model folder promises, by name or folder, against the package's own outputs."""
    cards = [(folder / "README.md").read_text() for folder in folders]
    arguments = json.dumps([encoder, classifier, SENTENCE, [snippets(card) for card in cards]])
    code = f"import sys; sys.argv[1:] = [{arguments!r}]\n{STRANGER}"
    answers = json.loads(fresh_process.run_python(code, home, env).splitlines()[-1])

    inputs = AutoTokenizer.from_pretrained(folders[0])(SENTENCE, return_tensors="pt")
    with torch.inference_mode():
        own = TinyBertModel.from_pretrained(folders[0]).eval()(**inputs)
        own_classifier = TinyBertForSequenceClassification.from_pretrained(folders[1]).eval()
        logits = own_classifier(**inputs).logits
        classifier_embedding = own_classifier.tinybert(**inputs).pooler_output
    for name, expected in {
        "embedding": own.pooler_output[0],
        "classifier_embedding": classifier_embedding[0],
        "logits": logits[0],
        "hidden_states": own.last_hidden_state[0],
    }.items():
        torch.testing.assert_close(torch.tensor(answers[name]), expected, atol=1e-6, rtol=1e-6, msg=name)
    assert answers["found"][0]["index"] == 1 and answers["found"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert {a["label"]: a["score"] for a in answers["probability"]} == pytest.approx(
        dict(zip(("negative", "positive"), logits.softmax(dim=-1)[0].tolist(), strict=True)), abs=1e-6
    )
    # The first snippet of a card is followed by what it prints.
    shown = [re.search(r"```text\n(.*?)```", card, re.DOTALL)[1] for card in cards]
    assert len(answers["printed"]) == 6 and all(answers["printed"])
    assert [answers["printed"][0], answers["printed"][4]] == shown
    by_transformers, by_sentence_transformers = answers["printed"][2:4]
    assert float(by_sentence_transformers) == pytest.approx(float(by_transformers), abs=1e-5)


def test_the_folders_work_without_the_package(encoder: Path, classifier: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "published-encoder", tmp_path / "published-classifier"]
    folders = [build_folder(s, p, str(p)) for s, p in zip((encoder, classifier), paths, strict=True)]
    check_as_a_stranger(str(folders[0]), str(folders[1]), folders, tmp_path, None)


def test_their_copies_on_the_hub_work_without_the_package(
    encoder: Path, classifier: Path, tmp_path: Path, online: LoopbackHub, command: Command
) -> None:
    names, paths = [REPO, "tester/tiny-classifier"], [tmp_path / "a", tmp_path / "b"]
    for source, name, path in zip((encoder, classifier), names, paths, strict=True):
        assert "in one commit" in command("--model", source, "--repo_id", name, "--output_dir", path)
    check_as_a_stranger(names[0], names[1], paths, tmp_path, online.env(tmp_path / "home"))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_transformers_encodes_as_we_do(
    config: TinyBertConfig, encoder: Path, tmp_path: Path, pooling: str
) -> None:
    config.pooling = pooling
    TinyBertModel(config).eval().save_pretrained(encoder)
    folder = build_folder(encoder, tmp_path / "published", REPO)
    texts = [SENTENCE, "mail", "send and receive electronic mail " * 20]
    code = f"""
        import json
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer({str(folder)!r}, trust_remote_code=True)
        model.save_pretrained({str(tmp_path / "saved")!r})
        print(json.dumps([model.max_seq_length, model.encode({texts!r}).tolist()]))
    """
    max_length, embeddings = json.loads(fresh_process.run_python(code, tmp_path).splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert max_length == 32 < len(tokenizer(texts[2])["input_ids"])
    expected = encode(TinyBertModel.from_pretrained(folder), tokenizer, texts)
    torch.testing.assert_close(torch.tensor(embeddings), expected, atol=1e-5, rtol=0)

    def described(path: Path) -> dict[str, Any]:
        files = {file: json.loads((path / file).read_text()) for file in SENTENCE_TRANSFORMERS_FILES}
        files["config_sentence_transformers.json"].pop("__version__", None)
        return files

    assert described(folder) == described(tmp_path / "saved")  # as its own save describes the model


def test_a_classifier_is_not_described_to_sentence_transformers(classifier: Path, tmp_path: Path) -> None:
    folder = build_folder(classifier, tmp_path / "published", REPO)
    assert SENTENCE_TRANSFORMERS_FILES.isdisjoint(contents(folder))
    assert "sentence-transformers" not in (folder / "README.md").read_text()


# ---- The push ----


def test_the_command_recovers_from_a_lost_connection_and_verifies(
    encoder: Path, tmp_path: Path, hub: LoopbackHub
) -> None:
    """In processes of its own, from the flags to the model loaded back."""
    argv = [sys.executable, ROOT / "push_to_hub.py", "--model", encoder, "--repo_id", REPO, "--private"]

    def run() -> subprocess.CompletedProcess[str]:
        env = hub.env(tmp_path / "home")
        return subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    hub.drop_next("POST", "/commit/", during="request")
    before = contents(encoder)
    done = run()
    assert (done.returncode, contents(encoder)) == (1, before)
    assert "run the same command again" in done.stderr and "Traceback" not in done.stderr
    assert len(hub.commits(REPO)) == 1
    done = run()
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPO}/commit/{hub.commits(REPO)[0].id}" in done.stdout
    assert "Loaded it back from the Hub" in done.stdout
    assert hub.repos["model", REPO].private


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
        (lambda hub: hub.fail_next("GET", "/api/models/"), "503"),
        (lambda hub: hub.fail_next("POST", "/paths-info/", 500), "500, Injected fault"),
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
        assert f"{url} did not take the model (ReadTimeout" in command("--model", encoder, "--repo_id", REPO)
    close_session()
    assert "ConnectError" in command("--model", encoder, "--repo_id", REPO)


def test_a_copy_on_the_hub_that_is_not_the_local_model_is_found_out(
    encoder: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real verification, of weights that changed by a thousandth and of a folder without its code."""
    folder = build_folder(encoder, tmp_path / "published", REPO)
    for name, value in hub.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    files = contents(folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1e-3
    save_file(weights, tmp_path / "other.safetensors", metadata={"format": "pt"})
    files["model.safetensors"] = (tmp_path / "other.safetensors").read_bytes()
    commit = hub.add_repo("model", REPO, files)
    with pytest.raises(HubError, match="an output differs by"):
        load_back(folder, REPO, commit, hub.url)
    del files["modeling_tinybert.py"]
    commit = hub.add_repo("model", REPO, files)
    with pytest.raises(HubError, match=r"modeling_tinybert\.py"):
        load_back(folder, REPO, commit, hub.url)


# ---- ONNX on the Hub ----


def retrain(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_onnx_models_of_other_weights_are_deleted_in_the_same_commit(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    argv = ["--model", encoder, "--repo_id", REPO]
    command(*argv, "--onnx")
    online.add_commit(REPO, {"onnx/model_fp16.onnx": b"someone else's", "notes.txt": b"kept"})
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


def test_onnx_models_on_the_hub_are_compared_with_the_model(
    encoder: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real verification, of ONNX models as they should be, of another model, and cut off."""
    for name, value in hub.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    folder = build_folder(encoder, tmp_path / "published", REPO, onnx=True)
    files = contents(folder)
    load_back(folder, REPO, hub.add_repo("model", REPO, files), hub.url)
    torch.manual_seed(1)
    TinyBertModel(TinyBertConfig.from_pretrained(encoder)).save_pretrained(encoder)
    other = contents(build_folder(encoder, tmp_path / "other", REPO, onnx=True))
    for content, message in (
        (other[BROWSER_MODEL], r"model_quantized\.onnx has a cosine of .* 0\.99 is expected"),
        (files[BROWSER_MODEL][:1000], "InvalidProtobuf"),
    ):
        commit = hub.add_repo("model", REPO, files | {BROWSER_MODEL: content})
        with pytest.raises(HubError, match=message):
            load_back(folder, REPO, commit, hub.url)


# ---- The page, published; what it does is in test_space.py ----


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

    assert "The page is up to date" in command(*argv)  # the ONNX models are on the Hub
    assert len(space.commits) == 2
    (encoder / "evaluation_other.json").write_text(json.dumps(EVALUATION))
    command(*argv)
    assert settings(online.files(SPACE, repo_type="space"))["revision"] == online.commits(REPO)[0].id
    assert len(space.commits) == 3


def test_a_space_beside_a_pull_request_loads_what_is_proposed(
    encoder: Path, online: LoopbackHub, command: Command
) -> None:
    online.add_repo("model", "other/tiny", {"README.md": b"theirs"})
    argv = ["--model", encoder, "--repo_id", "other/tiny", "--create_pr", "--onnx", "--space", SPACE]
    assert "Pushed the page in one commit" in command(*argv)
    proposed = online.repos["model", "other/tiny"].refs["refs/pr/1"]
    assert settings(online.files(SPACE, repo_type="space"))["revision"] == proposed.id


def test_a_page_is_built_to_try_it_without_the_hub(encoder: Path, tmp_path: Path, command: Command) -> None:
    argv = ["--model", encoder, "--output_dir", tmp_path / "published", "--space", SPACE]
    assert "has no onnx/model_quantized.onnx, which the page runs; add --onnx" in command(*argv)
    for _ in range(2):
        printed = command(*argv, "--onnx")
        assert f"--directory {tmp_path}\nand open http://127.0.0.1:8000/published-space/" in printed
    built = settings(contents(tmp_path / "published-space"))
    assert (built["host"], built["path"], built["model"]) == ("../", "{model}/", "published")
    (tmp_path / "published-space" / "style.css").write_text("mine")
    assert "holds style.css, which was not built here, or was edited" in command(*argv, "--onnx")


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
        (lambda hub: hub.fail_next("POST", "/api/spaces/.*/paths-info/"), "503"),
        (lambda hub: hub.fail_next("POST", "/api/spaces/.*/commit/"), "503"),
        (
            lambda hub: hub.drop_next("POST", "/api/spaces/.*/commit/", during="response"),
            "RemoteProtocolError",
        ),
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
