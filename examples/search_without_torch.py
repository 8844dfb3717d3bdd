"""Search where torch and transformers are not installed: the lines of a file, or an index that `tinybert` made.

    pip install onnxruntime tokenizers numpy
    python search_without_torch.py MODEL --query "undo a commit" --chunks passages.txt
    pip install lancedb
    python search_without_torch.py MODEL --query "undo a commit" --index packages.index

MODEL is a folder that `tinybert publish --onnx` made. By default its int8 model is used, whose scores differ a little from
those of the PyTorch model. `--file onnx/model.onnx` has the same scores, and is slower.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH = 16  # texts of like length that are encoded together


class Encoder:
    """Texts to embeddings of length 1."""

    def __init__(self, folder: Path, file: str = "onnx/model_quantized.onnx") -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.prompts = config.get("prompts", {})
        self.width = config["hidden_size"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(config["max_position_embeddings"])
        self.tokenizer.enable_padding(pad_id=config["pad_token_id"])
        self.session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """(N, H) fp32. `kind` is query or document: the model may know texts of a kind behind a prompt."""
        embeddings = np.empty((len(texts), self.width), np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), BATCH):
            places = by_length[start : start + BATCH]
            tokens = self.tokenizer.encode_batch([self.prompts.get(kind, "") + texts[i] for i in places])
            feeds = {
                "input_ids": np.array([one.ids for one in tokens], np.int64),
                "attention_mask": np.array([one.attention_mask for one in tokens], np.int64),
            }
            (embeddings[places],) = self.session.run(["sentence_embedding"], feeds)
        return embeddings


def search_texts(encoder: Encoder, query: str, texts: Sequence[str], top_k: int) -> list[tuple[float, str]]:
    """The texts that are closest to the query, with their cosine similarities, best first."""
    scores = encoder.encode(texts, "document") @ encoder.encode([query], "query")[0]
    return [(float(scores[i]), texts[i]) for i in np.argsort(-scores, kind="stable")[:top_k]]


def search_index(encoder: Encoder, query: str, index: Path, top_k: int) -> list[tuple[float, str]]:
    """The same of an index in a folder. It is a table of LanceDB, which brings filters and BM25 of its own."""
    import lancedb

    table = lancedb.connect(index).open_table("passages")
    found = table.search(encoder.encode([query], "query")[0]).distance_type("dot").refine_factor(10).limit(top_k)
    return [(1 - row["_distance"], row["text"]) for row in found.to_list()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--query", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--chunks", type=Path, help="a text file with one text a line")
    source.add_argument(
        "--index", type=Path, help="a folder that `tinybert index build` or `sync` made with this model"
    )
    parser.add_argument("--top_k", type=int, default=3)
    parser.add_argument("--file", default="onnx/model_quantized.onnx")
    arguments = parser.parse_args()
    encoder = Encoder(arguments.model, arguments.file)
    if arguments.index:
        hits = search_index(encoder, arguments.query, arguments.index, arguments.top_k)
    else:
        lines = arguments.chunks.read_text(encoding="utf-8").split("\n")
        texts = [line.strip() for line in lines if line.strip()]
        hits = search_texts(encoder, arguments.query, texts, arguments.top_k)
    for rank, (score, text) in enumerate(hits, start=1):
        print(f"{rank:3d}. {score:.3f}  {text}")


if __name__ == "__main__":
    main()
