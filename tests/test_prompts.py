"""A model's prompts stand before every query and every document, wherever texts meet the model.

The twin of a model is the same without prompts: it must be given the whole texts.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS
from datasets import Dataset
from publishing import snippets
from retrieval_setup import save_sentence_transformer, write_beir
from sentence_transformers import SentenceTransformer
from training_run import TINY, train, write_pairs
from transformers import PreTrainedTokenizerBase

from tinybert_hf import RetrievalArguments, TinyBertConfig, TinyBertModel, load_search_pipeline
from tinybert_hf.beir import load_beir
from tinybert_hf.data import text_id
from tinybert_hf.encoding import SearchPipeline
from tinybert_hf.errors import InputError
from tinybert_hf.evaluation import load_text_encoder, run_model
from tinybert_hf.index import SearchIndex
from tinybert_hf.pipeline_tinybert import with_prompt
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.space import build_space
from tinybert_hf.tokenization import prompt_tokens, tokenize_columns
from tinybert_hf.training.retrieval import build_stage

PROMPTS = {"query": "music: ", "document": "photos: "}  # of words that the tokenizer knows
QUERIES, DOCUMENTS = TEXTS[:3], TEXTS[3:]
WHOLE_QUERIES = [PROMPTS["query"] + text for text in QUERIES]
WHOLE_DOCUMENTS = [PROMPTS["document"] + text for text in DOCUMENTS]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybert_hf.encoding.fast_dtype", lambda device: torch.float32)


@pytest.fixture
def twin(model_folder: Path) -> SearchPipeline:
    """Loaded before `prompted` changes the folder."""
    return load_search_pipeline(model_folder)


@pytest.fixture
def prompted(twin: SearchPipeline, model_folder: Path) -> Path:
    """The same model with prompts."""
    config = TinyBertConfig.from_pretrained(model_folder)
    config.prompts = dict(PROMPTS)
    config.save_pretrained(model_folder)
    return model_folder


@pytest.fixture
def scores(twin: SearchPipeline) -> torch.Tensor:
    """What every way of searching must find: (queries, documents)."""
    return twin.encode(WHOLE_QUERIES) @ twin.encode(WHOLE_DOCUMENTS).T


# ---- In the configuration ----


def test_a_configuration_without_prompts_is_what_it_was(tmp_path: Path) -> None:
    for prompts in (None, {}, {"query": ""}):
        config = TinyBertConfig(prompts=prompts)
        config.save_pretrained(tmp_path)
        assert config.prompts == {} and "prompts" not in json.loads((tmp_path / "config.json").read_text())


def test_prompts_are_saved_and_loaded(prompted: Path) -> None:
    assert json.loads((prompted / "config.json").read_text())["prompts"] == PROMPTS
    assert TinyBertModel.from_pretrained(prompted).config.prompts == PROMPTS


# ---- Where texts are searched ----


def test_the_search_puts_them_before_queries_and_chunks(
    prompted: Path, scores: torch.Tensor, twin: SearchPipeline
) -> None:
    search = load_search_pipeline(prompted)
    for ranking, row in zip(search(QUERIES, DOCUMENTS, top_k=5), scores, strict=True):
        assert [hit["text"] for hit in ranking] == [DOCUMENTS[i] for i in row.argsort(descending=True)]
        assert [hit["score"] for hit in ranking] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
    torch.testing.assert_close(search.encode_query(QUERIES), twin.encode(WHOLE_QUERIES))
    torch.testing.assert_close(search.encode_document(DOCUMENTS), twin.encode(WHOLE_DOCUMENTS))
    torch.testing.assert_close(search.encode(QUERIES), twin.encode(QUERIES))
    with pytest.raises(TypeError, match="texts must be a list of strings"):
        search.encode_query("one")  # type: ignore[arg-type]


def test_an_index_adds_documents_and_searches_with_queries(
    prompted: Path, scores: torch.Tensor, tmp_path: Path
) -> None:
    index = SearchIndex(tmp_path / "corpus", prompted)
    index.add(DOCUMENTS)
    for row, hits in zip(scores, index.search(QUERIES, top_k=5), strict=True):
        assert [hit["score"] for hit in hits] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)


def test_an_index_of_other_prompts_is_one_of_another_model(prompted: Path, tmp_path: Path) -> None:
    SearchIndex(tmp_path / "corpus", prompted).add(DOCUMENTS)
    config = TinyBertConfig.from_pretrained(prompted)
    config.prompts["query"] = "mail: "
    config.save_pretrained(prompted)
    with pytest.raises(InputError, match="Two models' embeddings differ"):
        SearchIndex(tmp_path / "corpus").search("music")


# ---- Where a model is measured, mines and teaches ----


def test_an_encoder_that_is_compared_or_mines_uses_them(prompted: Path, scores: torch.Tensor) -> None:
    found = load_text_encoder(str(prompted)).score(QUERIES, DOCUMENTS)(slice(0, 3))
    torch.testing.assert_close(found.cpu(), scores, rtol=0, atol=1e-5)


def test_an_evaluation_uses_them(prompted: Path, twin: SearchPipeline, tmp_path: Path) -> None:
    data = load_beir(str(write_beir(tmp_path / "beir")))
    run, _ = run_model(load_search_pipeline(prompted), data, [])["model"]
    for name, query in data.queries.items():
        (expected,) = (
            twin.encode([PROMPTS["query"] + query])
            @ twin.encode([PROMPTS["document"] + text for text in data.corpus.values()]).T
        )
        found = [run[name][document] for document in data.corpus]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_teacher_takes_texts_for_documents(
    prompted: Path, twin: SearchPipeline, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = load_text_encoder(str(prompted)).encode_documents(DOCUMENTS).cpu()
    torch.testing.assert_close(found, twin.encode(WHOLE_DOCUMENTS), rtol=0, atol=1e-3)
    other = save_sentence_transformer(tmp_path / "other", tokenizer)
    expected = SentenceTransformer(str(other)).encode(
        WHOLE_DOCUMENTS, convert_to_tensor=True, normalize_embeddings=True
    )
    path = other / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": PROMPTS}))
    found = torch.nn.functional.normalize(load_text_encoder(str(other)).encode_documents(DOCUMENTS).cpu())
    torch.testing.assert_close(found, expected.cpu(), rtol=0, atol=1e-3)


# ---- Training ----


def test_columns_are_tokenized_behind_them_and_keep_their_text_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    data = Dataset.from_dict({"query": QUERIES, "answer": DOCUMENTS[:3], "negative_0": DOCUMENTS[2:]})
    rows = tokenize_columns(data, tokenizer, 32, PROMPTS)
    assert rows["query"][:] == tokenizer(WHOLE_QUERIES)["input_ids"]
    assert rows["answer"][:] == tokenizer(WHOLE_DOCUMENTS[:3])["input_ids"]
    assert rows["negative_0"][:] == tokenizer(WHOLE_DOCUMENTS[2:])["input_ids"]
    assert rows["query_id"][:] == [text_id(text) for text in QUERIES], "what is one text stays one text"
    assert tokenize_columns(data, tokenizer, 32)["query"][:] == tokenizer(QUERIES)["input_ids"], "kept apart on disk"


def stage_of(model_folder: Path, accelerator: Accelerator, **more: Any) -> Any:
    arguments = RetrievalArguments(
        model=str(model_folder), eval_size=4, per_device_train_batch_size=2, **more, output_dir="unused"
    )
    return build_stage(arguments, accelerator, None)


PAIRS = [{"query": text, "answer": f"{text} {i}"} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, PROMPTS),
        ({"query_prompt": "mail: "}, {**PROMPTS, "query": "mail: "}),
        ({"query_prompt": "", "document_prompt": ""}, {}),
    ],
)
def test_training_takes_them_from_the_start_or_from_its_flags(
    prompted: Path, accelerator: Accelerator, tmp_path: Path, flags: dict[str, str], expected: dict[str, str]
) -> None:
    stage = stage_of(prompted, accelerator, data=PAIRS, **flags)
    tokens, _ = stage.texts([0], step=0)
    texts = [expected.get("query", "") + stage.data.train["query"][0]]
    texts += [expected.get("document", "") + stage.data.train["answer"][0]]
    assert tokens == stage.tokenizer(texts)["input_ids"]
    stage.model.save_pretrained(tmp_path / "saved")
    assert TinyBertConfig.from_pretrained(tmp_path / "saved").prompts == expected


def test_documents_and_the_queries_cut_from_them_stand_behind_them(prompted: Path, accelerator: Accelerator) -> None:
    documents = [{"text": f"{text}. {' '.join(TEXTS[i:])}"} for i, text in enumerate(TEXTS)]
    stage = stage_of(prompted, accelerator, documents=documents)
    plain = stage_of(prompted, accelerator, documents=documents, query_prompt="", document_prompt="")
    (query, answer), _ = stage.texts([0], step=0)
    (bare_query, _), _ = plain.texts([0], step=0)
    query_ids, document_ids = prompt_tokens(stage.tokenizer, PROMPTS, 32)
    assert query_ids and query == [bare_query[0], *query_ids, *bare_query[1:]]
    assert answer[1 : 1 + len(document_ids)] == document_ids
    assert max(len(text) for text in stage.texts(list(range(4)), step=0)[0]) <= 32, "the prompt has room"


def test_mining_and_measuring_while_training_use_them(
    prompted: Path, twin: SearchPipeline, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    module = "tinybert_hf.training.retrieval"
    stage = stage_of(prompted, accelerator, data=PAIRS, mined_negatives=1)

    def embed(model: object, tokenizer: object, texts: list[str], show_progress_bar: bool = False) -> torch.Tensor:
        seen.append(texts)
        return twin.encode(texts)

    monkeypatch.setattr(f"{module}.encode_by_processes", embed)
    monkeypatch.setattr(f"{module}.evaluate_pairs", lambda queries, answers, *_: seen.extend([queries, answers]))
    stage.prepare(stage.model, step=0)
    stage.evaluate(stage.model)
    rows = (stage.data.train, stage.data.evaluation)
    names = (("query", "query"), ("answer", "document"))
    assert seen == [[PROMPTS[kind] + text for text in data[name]] for data in rows for name, kind in names]


def test_a_prompt_that_leaves_no_room_is_refused(prompted: Path, accelerator: Accelerator) -> None:
    with pytest.raises(InputError, match=r"A prompt has 17 tokens, and the encoder takes 32. Pass a shorter one"):
        stage_of(prompted, accelerator, data=PAIRS, query_prompt="music " * 17)


@pytest.mark.slow
def test_a_run_with_prompts_is_resumed_and_keeps_them(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    flags = ["--data", str(pairs), "--config_overrides", TINY, "--eval_size", "32", "--max_steps", "2"]
    flags += ["--per_device_train_batch_size", "8", "--report_to", "none", "--save_steps", "1"]
    flags += ["--query_prompt", "query: ", "--output_dir", str(tmp_path / "out")]
    train("retrieval", flags, tmp_path / "log")
    assert TinyBertConfig.from_pretrained(tmp_path / "out").prompts == {"query": "query: "}
    train("retrieval", [*flags, "--resume_from_checkpoint", "auto"], tmp_path / "log")
    with pytest.raises(AssertionError, match="query_prompt was query: , now None"):
        flags = [flag for flag in flags if flag not in ("--query_prompt", "query: ")]
        train("retrieval", [*flags, "--resume_from_checkpoint", "auto"], tmp_path / "log")


# ---- What is published ----


def test_sentence_transformers_finds_them_in_the_published_folder(
    prompted: Path, scores: torch.Tensor, tmp_path: Path
) -> None:
    folder = build_folder(prompted, tmp_path / "published", "tester/tiny")
    theirs = SentenceTransformer(str(folder), trust_remote_code=True)
    assert theirs.prompts == PROMPTS and theirs.default_prompt_name is None
    found = theirs.similarity(theirs.encode_query(QUERIES), theirs.encode_document(DOCUMENTS))
    torch.testing.assert_close(found.cpu(), scores, rtol=0, atol=1e-5)


def test_the_cards_snippets_hold_whole_texts_where_nobody_adds_a_prompt(prompted: Path, tmp_path: Path) -> None:
    card = (build_folder(prompted, tmp_path / "published", "tester/tiny") / "README.md").read_text()
    assert 'every query begins with `"music: "`, every other text with `"photos: "`.\n' in card
    by_pipeline, both, *others = snippets(card)
    assert "music: " not in by_pipeline + both, "the pipeline adds them"
    assert len(others) >= 2
    for snippet in others:
        assert '"music: chat with friends"' in snippet and '"photos: A client for' in snippet


def test_the_page_is_told_them(prompted: Path, tmp_path: Path) -> None:
    model = build_folder(prompted, tmp_path / "published", "tester/tiny")
    page = build_space(tmp_path / "page", "tester/demo", model, ("tester/tiny", "main"))
    assert (
        '"prompts": {\n    "query": "music: ",\n    "document": "photos: "\n  }' in (page / "settings.js").read_text()
    )


def test_texts_without_prompts_are_the_very_same() -> None:
    config = SimpleNamespace(prompts={})
    assert with_prompt(config, "query", TEXTS) == TEXTS
