"""How fast a published folder's ONNX models encode, here and in sentence-transformers, whose ONNX backend needs optimum.

    tinybert publish --model outputs/small-retrieval --output_dir PUBLISHED --onnx
    python benchmarks/encoding_int8.py PUBLISHED ours
    OTHER/bin/python benchmarks/encoding_int8.py PUBLISHED theirs

optimum-onnx needs transformers 4, so OTHER is an environment of its own: `pip install sentence-transformers optimum-onnx
onnxruntime torch`. Run both in turns on an idle machine. It prints texts a second for three kinds of bundled texts.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "debian" / "train.jsonl.gz"
Encode = Callable[[Sequence[str]], Any]


def kinds_of_texts() -> dict[str, list[str]]:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(400)]
    queries, answers = [row["query"] for row in rows], [row["answer"] for row in rows]
    longest = sorted(answers, key=len)[-120:]
    return {"queries": queries, "long passages": longest, "mixed": queries[:150] + answers[:150]}


def our_encoders(folder: str) -> Iterator[tuple[str, Encode]]:
    from tinybert_hf import encode, load_search_pipeline
    from tinybert_hf.onnx import OnnxEncoder

    search = load_search_pipeline(folder)
    yield "fp32", search.encode
    encoder: Any = OnnxEncoder(folder)
    yield "int8 (ONNX Runtime)", lambda texts: encode(encoder, search.tokenizer, texts)


def their_encoders(folder: str) -> Iterator[tuple[str, Encode]]:
    from sentence_transformers import SentenceTransformer

    yield "torch, fp32", SentenceTransformer(folder, device="cpu").encode
    for name, file in (("onnx, fp32", "onnx/model.onnx"), ("onnx, int8", "onnx/model_quantized.onnx")):
        options: dict[str, Any] = {"backend": "onnx", "model_kwargs": {"file_name": file}}
        yield name, SentenceTransformer(folder, device="cpu", **options).encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder built with tinybert publish --onnx")
    parser.add_argument("side", choices=["ours", "theirs"])
    arguments = parser.parse_args()
    encoders = our_encoders if arguments.side == "ours" else their_encoders
    for name, encode in encoders(arguments.folder):
        for kind, texts in kinds_of_texts().items():
            encode(texts[:16])
            started = time.perf_counter()
            encode(texts)
            print(f"{arguments.side}, {name} | {kind} | {len(texts) / (time.perf_counter() - started):.1f}", flush=True)


if __name__ == "__main__":
    main()
