"""The model card: what was measured, and nothing else.

python -m pytest tests/publish/test_model_card.py -q
"""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard
from publishing import EVALUATION, REPO, SENTIMENT, snippets

from tinybert_hf.publish.folder import build_folder


def model_index(card: ModelCard) -> list[tuple[str, str, float]]:
    return [(r.dataset_type, r.metric_name, r.metric_value) for r in card.data.eval_results or []]


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
    assert model_index(card) == [("stanfordnlp/sst2", "accuracy", 0.8123), ("stanfordnlp/sst2", "f1_macro", 0.8045)]
    assert (card.data.pipeline_tag, card.data.license) == ("text-classification", "mit")


def test_metadata_names_the_data_and_the_base_model_that_are_on_the_hub(encoder: Path, tmp_path: Path) -> None:
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
    facts = ["4,321 rows", "765 held out", "2.46 epochs", "1,357 steps of 97 rows", "1,234, was kept", "0.00071"]
    facts += ["13% of the steps", "weight decay 0.017", "at most 1.9", "seed 5", "66.8 minutes", "3 x cpu", "bf16"]
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
