"""What a stranger can do with a built folder and with its copy on the Hub, in processes without the package.

python -m pytest tests/publish/test_stranger.py -q
"""

import json
import re
from pathlib import Path

import fresh_process
import pytest
import torch
from loopback_hub import LoopbackHub
from publishing import REPO, ROOT, Command, save_model, snippets
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel, encode
from tinybert_hf.publish.folder import build_folder

pytestmark = pytest.mark.slow
SENTENCE = "a fast compiler for small machines"

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
    answers = json.loads(fresh_process.run_stranger(code, home, env).splitlines()[-1])

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


@pytest.fixture
def words(config: TinyBertConfig, encoder: Path, tokenizer: PreTrainedTokenizerBase) -> TinyBertModel:
    """An encoder without layers, in the place of the encoder."""
    config.num_hidden_layers, config.pooling, config.position_embedding_type = 0, "mean", "rotary"
    config.prompts = {"query": "music: "}
    save_model(TinyBertModel(config), tokenizer, encoder)
    return TinyBertModel.from_pretrained(encoder).eval()


@pytest.mark.interop
def test_model2vec_reads_an_encoder_without_layers(
    words: TinyBertModel, encoder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = build_folder(encoder, tmp_path / "published", str(tmp_path / "published"))
    (snippet,) = re.findall(r"```py\n(from model2vec.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    texts = [SENTENCE, "mail", "read and write compressed archives"]
    code = f"{snippet}\nimport json; print(json.dumps(model.encode({texts!r}).tolist()))"
    printed = fresh_process.run([ROOT / ".interop" / "bin" / "python", "-c", code], {}, tmp_path)
    found = torch.tensor(json.loads(printed.splitlines()[-1]))
    torch.testing.assert_close(found, encode(words, tokenizer, texts), atol=1e-5, rtol=0)


def test_an_encoder_without_layers_needs_no_remote_code(
    words: TinyBertModel, encoder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, folder = words, build_folder(encoder, tmp_path / "published", REPO)
    texts = [SENTENCE, "mail", "Zürich 漢字 mail", " ", "send and receive electronic mail " * 20]
    loaded = SentenceTransformer(str(folder), device="cpu")
    torch.testing.assert_close(
        torch.from_numpy(loaded.encode(texts)), encode(model, tokenizer, texts), atol=1e-5, rtol=0
    )
    asked = encode(model, tokenizer, [f"music: {SENTENCE}"])
    torch.testing.assert_close(torch.from_numpy(loaded.encode_query([SENTENCE])), asked, atol=1e-5, rtol=0)
    card = (folder / "README.md").read_text()
    (snippet,) = (code for code in snippets(card) if "SentenceTransformer" in code)
    assert "trust_remote_code" not in snippet and "0_StaticEmbedding" in card
    assert AutoModel.from_pretrained(folder, trust_remote_code=True).config.num_hidden_layers == 0


def test_sentence_transformers_encodes_as_we_do(config: TinyBertConfig, encoder: Path, tmp_path: Path) -> None:
    for pooling in ("cls", "mean"):
        config.pooling = pooling
        TinyBertModel(config).eval().save_pretrained(encoder)
        build_folder(encoder, tmp_path / pooling, REPO)
    texts = [SENTENCE, "mail", "send and receive electronic mail " * 20]
    code = f"""
        import json
        from sentence_transformers import SentenceTransformer

        for folder in ("cls", "mean"):
            model = SentenceTransformer(folder, trust_remote_code=True)
            print(json.dumps([model.max_seq_length, model.encode({texts!r}).tolist()]))
    """
    printed = fresh_process.run_stranger(code, tmp_path).splitlines()[-2:]
    for pooling, (max_length, embeddings) in zip(("cls", "mean"), map(json.loads, printed), strict=True):
        folder = tmp_path / pooling
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert max_length == 32 < len(tokenizer(texts[2])["input_ids"])
        expected = encode(TinyBertModel.from_pretrained(folder), tokenizer, texts)
        torch.testing.assert_close(torch.tensor(embeddings), expected, atol=1e-5, rtol=0, msg=pooling)
