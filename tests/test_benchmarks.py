"""What the benchmarks compare is comparable, and how they turn runs into tables."""

import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_of_a_process import ask_for_a_pebibyte, peak_holding
from sentence_transformers import SentenceTransformer
from training_run import write_pairs

from benchmarks import encoding
from benchmarks.encoding import BERT, INT8, MINILM, OURS, THEIRS, EncodingBenchmark
from benchmarks.matmul_share import Point, forward_flops, rate
from benchmarks.measure import alternate, load_sentence_transformer, make_model, run_alone
from benchmarks.quality import train_peer
from benchmarks.training import compare
from benchmarks.training_runs import Encoder, Job, Peer, train_ours, train_theirs
from tinybert_hf import TinyBertConfig
from tinybert_hf.evaluation import evaluate_pairs
from tinybert_hf.training import RetrievalArguments
from tinybert_hf.training.pairs import load_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without dropout whose losses are far from chance: its weights are drawn wide."""
    wide = {"initializer_range": 0.3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return str(make_model("tiny", tmp_path_factory.mktemp("model"), wide))


@pytest.fixture(scope="module")
def job(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Job:
    data = write_pairs(tmp_path_factory.mktemp("data") / "pairs.csv", rows=48, seed=0)
    return Job(folder, str(data), batch_size=12, steps=2, precision="fp32")


@pytest.fixture(scope="module")
def ours(job: Job) -> dict[str, Any]:
    """Our run of it."""
    return run_alone(train_ours, job, 0, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["BertModel", "our encoder"])
def test_both_sides_train_the_same_weights_on_the_same_batches(
    job: Job, ours: dict[str, Any], encoder: Encoder
) -> None:
    """The losses of three steps agree, which other weights, rows, schedules or optimizers would not let them do."""
    peer = Peer(encoder, mini_batch_size=4, longest_first=True)
    theirs = run_alone(train_theirs, job, peer, threads=1)
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-4)
    chance = math.log(12)
    assert (torch.tensor(ours["losses"]) - chance).abs().min() > 0.05
    assert len(set(ours["losses"])) == 3
    assert ours["seconds"] > 0
    assert theirs["seconds"] > 0


def test_the_same_rows_are_timed_whatever_the_batch_size() -> None:
    def timed(batch_size: int) -> list[int]:
        batches = Job("", "", batch_size, 64 // batch_size, "fp32").batches(num_rows=128)
        assert not set(batches[0]) & {row for batch in batches[1:] for row in batch}
        return [row for batch in batches[1:] for row in batch]

    assert timed(8) == timed(16) == timed(64)


@pytest.mark.slow
@pytest.mark.parametrize("peer", [BERT, THEIRS])
def test_both_sides_encode_to_the_same_embeddings(folder: str, peer: str) -> None:
    texts = ["read mail", "a fast compiler for small machines"]
    ours = encoding.ENCODERS["ours, fp32"](folder)(texts)
    theirs = encoding.ENCODERS[peer](folder, batch_size=2)(texts)
    assert torch.allclose(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5)
    assert ours[0] @ ours[1] < 0.999


def test_the_flops_of_a_token_are_those_of_its_matrix_products() -> None:
    """H = 2, I = 3, T = 5: 2 x (4 x 4 + 2 x 6) for the weights, 4 x 5 x 2 for keys and values."""
    config = TinyBertConfig(hidden_size=2, num_attention_heads=1, intermediate_size=3, num_hidden_layers=1)
    assert forward_flops(config, tokens=5) == 56 + 40


def test_a_side_that_runs_out_of_memory_has_no_results() -> None:
    def fail() -> float:
        raise MemoryError("too much")

    assert alternate({"a": lambda: 1.0, "b": fail}, repeats=2) == {"a": [1.0, 1.0], "b": []}


@pytest.mark.slow
def test_a_run_measures_its_own_memory_and_tells_when_there_is_too_little() -> None:
    little, much = (run_alone(peak_holding, mebibytes, threads=1) for mebibytes in (1, 400))
    assert much - little == pytest.approx(399, rel=0.2)
    with pytest.raises(MemoryError, match="allocate"):
        run_alone(ask_for_a_pebibyte, threads=1)


@pytest.fixture(scope="module")
def published(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With ONNX models, which take ten seconds to make."""
    return encoding.publish(folder, tmp_path_factory.mktemp("published") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_encoding_prints_a_line_for_each_row_and_kind_of_text(
    folder: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(encoding, "bf16_in_hardware", lambda: bf16)
    monkeypatch.setattr(encoding, "publish", lambda model, output_dir: published)
    monkeypatch.setattr(encoding, "run_alone", lambda function, *arguments, threads: function(*arguments))
    monkeypatch.setattr(encoding, "BATCH_SIZES", (2,))
    arguments = EncodingBenchmark(num_texts=4, tuning_texts=2, repeats=2, threads=1, model=folder)
    tables, numbers = encoding.measure_encoding(arguments, tmp_path)
    encoders = {(line[0], line[1].split(", batch")[0]) for line in numbers["runs"]}
    kinds = {"queries", "long passages", "mixed"}
    expected = encoding.ENCODERS if bf16 else (OURS, INT8, BERT, THEIRS, MINILM)
    assert encoders == {(kind, encoder) for kind in kinds for encoder in expected}
    assert tables[0].count("\n| ") == 1 + len(numbers["runs"])
    assert all(float(line[4]) > 0.99 for line in numbers["runs"] if MINILM not in line[1])


def test_training_is_compared_by_the_medians_of_the_runs() -> None:
    def runs(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": value, "peak_mib": 10 * value} for value in seconds]

    rows = compare({"ours": runs(1, 2, 9), "theirs": runs(4, 6, 4), "large": []}, pairs=8)
    assert rows == [
        ["ours", "4.0 (0.9 to 8.0)", "1.00", "20"],
        ["theirs", "2.0 (1.3 to 2.0)", "2.00", "40"],
        ["large", "ran out of memory", "", ""],
    ]


def test_encoding_reaches_a_share_of_the_matmul_rate_above_zero(folder: str, tmp_path: Path) -> None:
    assert rate(Point("encoding", tokens=9, texts=4, layers=2), folder, "fp32", tmp_path) > 0


@pytest.mark.slow
def test_the_peer_of_the_quality_benchmark_has_the_models_time_and_learns(folder: str, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", rows=96, seed=0)
    arguments = RetrievalArguments(data=str(pairs), eval_data=str(pairs), per_device_train_batch_size=16, seed=3)
    summary = {"seconds": 4.0, "data": {}, "arguments": asdict(arguments)}
    summary["hardware"] = {"mixed_precision": "no"}
    started = time.perf_counter()
    steps = train_peer(summary, folder, 5e-3, tmp_path / "peer")
    assert steps > 1
    assert time.perf_counter() - started > 4
    rows = load_pairs(arguments).train
    peer, fresh = SentenceTransformer(str(tmp_path / "peer")), load_sentence_transformer(folder)
    ranks = [
        evaluate_pairs(rows["query"][:], rows["answer"][:], partial(model.encode, convert_to_tensor=True), 0.05)[
            "nDCG@10"
        ]
        for model in (peer, fresh)
    ]
    assert ranks[0] > ranks[1]
