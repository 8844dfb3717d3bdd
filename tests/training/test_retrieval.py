"""Stage two: its data, its batches and its step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training_run import NO_DROPOUT, TINY, WORDS, train, write_pairs
from transformers import PreTrainedTokenizerBase

from tinybert_hf import InputError, RetrievalArguments, TinyBertModel
from tinybert_hf.data import text_id
from tinybert_hf.pipeline_tinybert import pad_batch
from tinybert_hf.training.retrieval import DocumentStage, RetrievalStage, build_stage


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    rows = [f"question {i},reply {i},wrong {i},worse {i}" for i in range(80)]
    (tmp_path / "faq.csv").write_text("\n".join(["q,a,n1,n2", *rows]) + "\n")
    return tmp_path / "faq.csv"


@pytest.mark.slow
def test_explicit_negatives_and_accumulation_train(triplets: Path) -> None:
    out = triplets.parent / "out"
    columns = ["--query_column", "q", "--answer_column", "a", "--negative_columns", "n1", "n2"]
    more = ["--eval_size", "32", "--max_steps", "3", "--gradient_accumulation_steps", "2", "--logging_steps", "1"]
    sizes = ["--per_device_train_batch_size", "4", "--config_overrides", TINY, "--report_to", "none"]
    arguments = ["--data", str(triplets), *columns, *more, *sizes, "--output_dir", str(out)]
    train("retrieval", arguments, triplets.parent / "log")
    summary = json.loads((out / "retrieval_summary.json").read_text())
    assert summary["data"]["texts_per_row"] == 4
    assert (summary["steps"], summary["rows_per_step"]) == (3, 8)
    assert [entry["step"] for entry in summary["history"] if "loss" in entry] == [1, 2, 3]


@pytest.mark.slow
def test_documents_alone_train(tmp_path: Path) -> None:
    lines = [f"{WORDS[i % 16]} for {WORDS[i // 16]}, a program. It has {i} parts that do it." for i in range(200)]
    documents = [json.dumps({"body": line, "name": f"item {i}"}) for i, line in enumerate(lines)]
    (tmp_path / "notes.jsonl").write_text("\n".join(documents))
    arguments = ["--documents", str(tmp_path / "notes.jsonl"), "--text_column", "body", "--eval_size", "50"]
    arguments += ["--config_overrides", TINY, "--num_train_epochs", "6", "--report_to", "none"]
    arguments += ["--learning_rate", "0.005", "--logging_steps", "1", "--output_dir", str(tmp_path / "out")]
    train("retrieval", [*arguments, "--title_column", "name"], tmp_path / "log")
    summary = json.loads((tmp_path / "out" / "retrieval_summary.json").read_text())
    assert summary["data"]["data"] == str(tmp_path / "notes.jsonl")
    assert (summary["data"]["train_rows"], summary["data"]["eval_rows"]) == (150, 50)
    losses = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_teachers_tokens_and_smaller_widths_change_what_is_trained(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    sure = f"{TINY},{NO_DROPOUT}"
    shared = ["--data", str(pairs), "--eval_data", str(pairs), "--config_overrides", sure, "--max_steps", "12"]
    shared += ["--learning_rate", "3e-3", "--logging_steps", "1", "--report_to", "none"]
    losses = {}
    for name, flags in {
        "alone": [],
        "tokens": ["--teacher", str(model_folder)],
        "widths": ["--matryoshka_dims", "4", "8"],
    }.items():
        out = tmp_path / name
        train("retrieval", [*shared, *flags, "--output_dir", str(out)], tmp_path / "log")
        history = json.loads((out / "retrieval_summary.json").read_text())["history"]
        losses[name] = [entry["loss"] for entry in history if "loss" in entry]
    assert losses["tokens"][0] != pytest.approx(losses["alone"][0], rel=1e-3)
    assert losses["widths"][0] != pytest.approx(losses["alone"][0], rel=1e-3)
    for values in losses.values():
        assert values[-1] < values[0]


# ---- The stage by itself ----


@pytest.fixture
def make_stage(model_folder: Path, accelerator: Accelerator) -> Callable[..., RetrievalStage]:
    """A stage of six pairs, or of other ones."""
    words = ["fast mail", "music", "photos", "archives", "the terminal", "a movie"]
    six = {"query": words, "answer": [f"a program for {word}" for word in words]}

    def make(pairs: dict[str, list[str]] = six, **more: Any) -> RetrievalStage:
        rows = [dict(zip(pairs, texts, strict=True)) for texts in zip(*pairs.values(), strict=True)]
        data = {"data": rows, "eval_data": rows, "model": str(model_folder)}
        return build_stage(RetrievalArguments(per_device_train_batch_size=2, **data, **more), accelerator, None)

    return make


def test_mined_negatives_are_answers_of_other_rows_that_the_model_ranks_high(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {"query": ["fast mail", "music", "photos"], "answer": ["send fast mail", "fast mail too", "pictures"]}
    stage = make_stage(texts, mined_negatives=1)
    stage.prepare(model, step=0)
    tokens, ids = stage.texts([0, 2], step=0)
    numbers = {text_id(text): text for text in texts["answer"]}
    for row, negative, number in zip([0, 2], tokens[4:], ids[4:].tolist(), strict=True):
        assert numbers[number] != texts["answer"][row]
        assert negative == tokenizer(numbers[number])["input_ids"]
    before = stage.mined_rows
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.normal_()
    stage.prepare(model, step=0)
    assert stage.mined_rows is before, "mined twice in one epoch"
    stage.prepare(model, step=stage.sampler.steps_per_epoch)
    assert stage.mined_rows is not before


def test_the_stages_state_holds_the_mined_rows(make_stage: Callable[..., RetrievalStage], model: TinyBertModel) -> None:
    stage, other = make_stage(mined_negatives=1), make_stage(mined_negatives=1)
    stage.prepare(model, step=0)
    other.load_state_dict(stage.state_dict())
    (tokens, ids), (expected, expected_ids) = other.texts([0, 1], step=0), stage.texts([0, 1], step=0)
    assert tokens == expected and torch.equal(ids, expected_ids)
    with pytest.raises(IndexError):
        make_stage(mined_negatives=1).texts([0, 1], step=0)


@pytest.mark.parametrize("micro_batch_tokens", [16_384, 24])
def test_splitting_by_length_changes_neither_loss_nor_gradient(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel, micro_batch_tokens: int
) -> None:
    """Without dropout, whose masks are drawn micro-batch by micro-batch."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    queries = ["fast mail", "play music from the command line", "photos", "archives"]
    answers = ["send fast electronic mail", "music", "draw pictures", "a"]  # sorted otherwise than their queries
    stage = make_stage({"query": queries, "answer": answers})
    stage.micro_batch_tokens = micro_batch_tokens
    batch = stage.batch([0, 1, 2, 3], step=0)
    assert (len(batch.micro_batches) > 1) == (micro_batch_tokens == 24)
    loss = stage.backward(model.train(), batch)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    one = stage.batch([0, 1, 2, 3], step=0)
    texts = list(stage.texts([0, 1, 2, 3], step=0)[0])
    together = pad_batch(texts, model.config.pad_token_id)
    embeddings = model(**together).pooler_output
    expected = stage.loss(*embeddings.tensor_split([4]), one.query_ids, one.answer_ids)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_several_negatives_stand_behind_the_answers_first_all_rows_first_ones(
    make_stage: Callable[..., RetrievalStage], tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {name: [f"{name} {word}" for word in ("mail", "music", "photos")] for name in ("query", "answer")}
    texts |= {"near": ["text a", "text b", "text c"], "far": ["movie a", "movie b", "movie c"]}
    stage = make_stage(texts, negative_columns=["near", "far"])
    assert stage.texts_per_row == 4
    tokens, ids = stage.texts([2, 0], step=0)
    expected = [texts[name][row] for name in ("query", "answer", "near", "far") for row in (2, 0)]
    assert tokens == tokenizer(expected)["input_ids"]
    assert ids.tolist() == [text_id(text) for text in expected]
    batch = stage.batch([2, 0], step=0)
    assert (len(batch.query_ids), len(batch.answer_ids), len(batch.order)) == (2, 6, 8)


def test_each_epoch_draws_other_negatives_among_the_best(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel
) -> None:
    texts = {name: [f"{name} {i} {word}" for i, word in enumerate(WORDS)] for name in ("query", "answer")}
    stage = make_stage(texts, mined_negatives=2)
    first = stage.mine(model, epoch=0)
    assert first.shape == (16, 2) and torch.equal(stage.mine(model, epoch=0), first)
    assert not torch.equal(stage.mine(model, epoch=1), first)
    assert not torch.equal(make_stage(texts, mined_negatives=2, seed=5).mine(model, epoch=0), first)
    stage.prepare(model, step=0)
    _, ids = stage.texts([3, 7], step=0)
    expected = [texts["answer"][row] for row in first[[3, 7]].T.flatten().tolist()]
    assert ids[4:].tolist() == [text_id(text) for text in expected], "first ones of all rows, then second ones"


def test_more_activations_kept_is_the_same_gradient(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel
) -> None:
    gradients = []
    for budget in (0, 10**6):
        stage = make_stage(activation_budget_tokens=budget)
        model.zero_grad()
        torch.manual_seed(0)
        stage.backward(model.train(), stage.batch([0, 1, 2, 3], step=0))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_an_encoder_without_layers_is_trained_in_one_pass(
    tmp_path: Path, accelerator: Accelerator, model: TinyBertModel
) -> None:
    arguments = RetrievalArguments(
        data=str(write_pairs(tmp_path / "pairs.csv", 80, seed=0)),
        eval_size=32,
        config_overrides=TINY.replace("num_hidden_layers=1", "num_hidden_layers=0"),
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
    )
    stage = build_stage(arguments, accelerator, None)
    stage.micro_batch_tokens = 8
    batch = stage.batch(list(range(16)), step=0)
    assert len(batch.micro_batches) == 1
    loss = stage.backward(stage.model.train(), batch)
    assert loss.isfinite() and stage.model.embeddings.word_embeddings.weight.grad is not None


@pytest.mark.parametrize(
    ("overrides", "more", "message"),
    [
        (
            "hidden_dropout_prob=0",
            {"matryoshka_dims": [8, 33]},
            "must be from 1 to 32, the width of the encoder, got 33",
        ),
        ("hidden_dropout_prob=0", {"matryoshka_dims": [0]}, "must be from 1 to 32, the width of the encoder, got 0"),
    ],
)
def test_settings_that_do_not_fit_the_encoder_are_refused(
    tmp_path: Path, accelerator: Accelerator, overrides: str, more: dict[str, Any], message: str
) -> None:
    arguments = RetrievalArguments(
        data=str(write_pairs(tmp_path / "pairs.csv", 80, seed=0)),
        eval_size=32,
        config_overrides=f"{TINY},{overrides}",
        output_dir=str(tmp_path),
        **more,
    )
    with pytest.raises(InputError, match=message):
        build_stage(arguments, accelerator, None)


def test_documents_are_cut_anew_in_every_epoch(tmp_path: Path, accelerator: Accelerator) -> None:
    documents = [f"number {i} {WORDS[i % 16]} is here. It is {WORDS[i // 5]} of {i} parts or so." for i in range(64)]
    arguments = RetrievalArguments(
        documents=[{"text": text} for text in documents],
        eval_size=16,
        config_overrides=TINY,
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
    )
    stage = build_stage(arguments, accelerator, None)
    assert isinstance(stage, DocumentStage) and stage.unit == "documents"
    assert stage.facts() == {"data": "list of 64 rows", "train_rows": 48, "eval_rows": 16}
    per_epoch = stage.sampler.steps_per_epoch
    rows = list(range(8))
    (first, ids), (same, _), (other, other_ids) = (stage.texts(rows, step) for step in (0, per_epoch - 1, per_epoch))
    assert first == same != other and torch.equal(ids, other_ids)
    assert torch.equal(ids[:8], ids[8:]), "head and body of a document are right for each other"
