"""Stage two: its data, its batches and its step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from training_run import WORDS, train, write_pairs
from transformers import PreTrainedTokenizerBase

from tinybert_hf import InputError, RetrievalArguments, TinyBertModel
from tinybert_hf.data import Split, text_id
from tinybert_hf.pipeline_tinybert import pad_batch
from tinybert_hf.tokenization import tokenize_columns
from tinybert_hf.training.pairs import load_pairs
from tinybert_hf.training.retrieval import RetrievalBatch, RetrievalStage
from tinybert_hf.training.sampler import StepSampler
from tinybert_hf.training.start import Start

TINY = (
    "vocab_size=300,hidden_size=32,num_hidden_layers=1,residual_initializer_range=0.1,"
    "num_attention_heads=4,intermediate_size=64,"
    "max_position_embeddings=32"
)


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    rows = [f"question {i},reply {i},wrong {i},worse {i}" for i in range(80)]
    (tmp_path / "faq.csv").write_text("\n".join(["q,a,n1,n2", *rows]) + "\n")
    return tmp_path / "faq.csv"


def test_columns_are_renamed_and_held_out_rows_share_no_text(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.csv", 200, seed=0)
    data = load_pairs(RetrievalArguments(data=str(path), eval_size=50))
    assert data.train.column_names == ["query", "answer"]
    assert len(data.evaluation) == 50
    for name in ("query", "answer"):
        assert not set(data.train[name]) & set(data.evaluation[name])


def test_a_missing_negative_column_is_named(triplets: Path) -> None:
    arguments = RetrievalArguments(
        data=str(triplets), query_column="q", answer_column="a", negative_columns=["n3"]
    )
    with pytest.raises(ValueError, match=r"no column 'n3'; it has q, a, n1, n2\. Pass --negative_columns"):
        load_pairs(arguments)


def test_too_few_rows_to_hold_out_are_refused(triplets: Path) -> None:
    with pytest.raises(ValueError, match="Cannot hold out 1000 of 80 rows"):
        load_pairs(RetrievalArguments(data=str(triplets), query_column="q", answer_column="a"))


def test_explicit_negatives_and_accumulation_train(triplets: Path) -> None:
    out = triplets.parent / "out"
    columns = ["--query_column", "q", "--answer_column", "a", "--negative_columns", "n1", "n2"]
    more = [
        "--eval_size",
        "32",
        "--max_steps",
        "3",
        "--gradient_accumulation_steps",
        "2",
        "--logging_steps",
        "1",
    ]
    sizes = ["--per_device_train_batch_size", "4", "--config_overrides", TINY, "--report_to", "none"]
    arguments = ["--data", str(triplets), *columns, *more, *sizes, "--output_dir", str(out)]
    train("retrieval", arguments, triplets.parent / "log")
    summary = json.loads((out / "retrieval_summary.json").read_text())
    assert summary["data"]["texts_per_row"] == 4
    assert (summary["steps"], summary["rows_per_step"]) == (3, 8)
    assert [entry["step"] for entry in summary["history"] if "loss" in entry] == [1, 2, 3]


def test_a_warm_start_needs_mean_pooling(triplets: Path) -> None:
    arguments = ["--data", str(triplets), "--query_column", "q", "--answer_column", "a", "--eval_size", "32"]
    arguments += [
        "--config_overrides",
        TINY + ",pooling=cls",
        "--warm_start_epochs",
        "1",
        "--output_dir",
        str(triplets.parent),
    ]
    log = triplets.parent / "log"
    with pytest.raises(AssertionError):
        train("retrieval", arguments, log)
    assert "--warm_start_epochs 1.0 trains the mean of token embeddings, and this encoder pools by 'cls'" in (
        log.read_text()
    )


def test_documents_alone_train(tmp_path: Path) -> None:
    lines = [
        f"{WORDS[i % 16]} for {WORDS[i // 16]}, a program. It has {i} parts that do it." for i in range(200)
    ]
    documents = [json.dumps({"body": line, "name": f"item {i}"}) for i, line in enumerate(lines)]
    (tmp_path / "notes.jsonl").write_text("\n".join(documents))
    arguments = ["--documents", str(tmp_path / "notes.jsonl"), "--text_column", "body", "--eval_size", "50"]
    arguments += [
        "--config_overrides",
        TINY,
        "--num_train_epochs",
        "6",
        "--report_to",
        "none",
    ]
    arguments += ["--learning_rate", "0.005", "--logging_steps", "1", "--output_dir", str(tmp_path / "out")]
    train("retrieval", [*arguments, "--title_column", "name"], tmp_path / "log")
    summary = json.loads((tmp_path / "out" / "retrieval_summary.json").read_text())
    assert summary["data"]["data"] == str(tmp_path / "notes.jsonl")
    assert (summary["data"]["train_rows"], summary["data"]["eval_rows"]) == (150, 50)
    losses = [entry["loss"] for entry in summary["history"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_a_teachers_tokens_and_smaller_widths_change_what_is_trained(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pairs = write_pairs(tmp_path / "pairs.csv", 100, seed=0)
    sure = TINY + ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"
    shared = [
        "--data",
        str(pairs),
        "--eval_data",
        str(pairs),
        "--config_overrides",
        sure,
        "--max_steps",
        "12",
    ]
    shared += ["--learning_rate", "3e-3", "--logging_steps", "1", "--report_to", "none"]
    losses = {}
    for name, flags in {
        "alone": [],
        "tokens": ["--teacher", str(model_folder), "--warm_start_epochs", "1"],
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


def test_documents_and_what_needs_fixed_queries_are_refused_together() -> None:
    for more in ({"mined_negatives": 1}, {"negative_columns": ["n"]}):
        with pytest.raises(InputError, match="--documents makes new queries in every epoch"):
            RetrievalArguments(documents="notes.jsonl", **more)


# ---- The stage by itself ----


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def make_stage(
    tmp_path: Path, model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> Callable[..., RetrievalStage]:
    """A stage of six pairs, or of other ones."""
    words = ["fast mail", "music", "photos", "archives", "the terminal", "a movie"]
    six = {"query": words, "answer": [f"a program for {word}" for word in words]}

    def make(pairs: dict[str, list[str]] = six, **more: Any) -> RetrievalStage:
        arguments = RetrievalArguments(per_device_train_batch_size=2, **more)
        data = Dataset.from_dict(pairs)
        rows = tokenize_columns(data, tokenizer, 32)
        sampler = StepSampler(len(rows), 2)
        start = Start(model.config, tokenizer)
        return RetrievalStage(arguments, accelerator, start, Split(data, data), sampler, rows, model)

    return make


def equal_batches(first: RetrievalBatch, second: RetrievalBatch) -> bool:
    flat = [[*batch[1:4], *(t for texts in batch[0] for t in texts.values())] for batch in (first, second)]
    return all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


def test_a_batch_is_a_function_of_its_rows_and_the_step(make_stage: Callable[..., RetrievalStage]) -> None:
    stage = make_stage()
    first = stage.batch([0, 3], step=0)
    stage.batch([1, 2], step=5)
    assert equal_batches(stage.batch([0, 3], step=0), first)
    assert equal_batches(make_stage().batch([0, 3], step=0), first)
    assert not equal_batches(stage.batch([3, 0], step=0), first)


def test_mined_negatives_are_answers_of_other_rows_that_the_model_ranks_high(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {
        "query": ["fast mail", "music", "photos"],
        "answer": ["send fast mail", "fast mail too", "pictures"],
    }
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


def test_the_stages_state_holds_the_mined_rows(
    make_stage: Callable[..., RetrievalStage], model: TinyBertModel
) -> None:
    stage, other = make_stage(mined_negatives=1), make_stage(mined_negatives=1)
    stage.prepare(model, step=0)
    other.load_state_dict(stage.state_dict())
    assert equal_batches(other.batch([0, 1], step=0), stage.batch([0, 1], step=0))


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
    stage = make_stage()
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
