"""The script that unpacks a multilingual start: what stands in the file is what a BERT and a tokenizer then hold.

python -m pytest tests/test_multilingual_start.py -q
"""

import struct
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from unpack_multilingual_start import berts_name, build_tokenizer, read_file

WORDS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
WORDS += [("▁", -4.0), ("▁für", -2.0), ("f", -6.0), ("ü", -6.0), ("r", -6.0), ("i", -6.0), ("<mask>", 0.0)]


def a_file(tensors: dict[str, tuple[bool, int, bytes]]) -> BytesIO:
    """A file in the layout of the package, written from its C structures: 32 wide, 2 layers."""
    texts = [word.encode() for word, _ in WORDS]
    starts = [sum(map(len, texts[:number])) for number in range(len(texts) + 1)]
    content = b"E5S1" + struct.pack("<I7ifi", 1, 32, 2, 4, 64, 40, 16, 2, 1e-12, 32)
    content += struct.pack("<5iQ", len(texts), 0, 2, 1, 3, starts[-1])
    content += struct.pack(f"<{len(starts)}I", *starts)
    content += struct.pack(f"<{len(texts)}f", *(score for _, score in WORDS)) + b"".join(texts)
    content += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0xA0, 1, 0x20)  # one character of the table
    content += struct.pack("<i", len(tensors))
    start = len(content) + sum(2 + len(name) + 21 for name in tensors)
    for name, (in_4_bits, numbers, data) in tensors.items():
        content += struct.pack("<H", len(name)) + name.encode()
        content += struct.pack("<BIQQ", in_4_bits, numbers, start, len(data))
        start += len(data)
    return BytesIO(content + b"".join(data for _, _, data in tensors.values()))


def test_sizes_words_and_tensors_of_the_file_are_read() -> None:
    ones = struct.pack("<32f", *[1.0] * 32)
    # Two blocks: a scale of 0.5 and weights -8, 7, 0, 0, ... and 1 at the 17th place; a scale of 2 and all -7.
    blocks = struct.pack("<e", 0.5) + bytes([0x90, 0x8F] + [0x88] * 14) + struct.pack("<e", 2.0) + bytes([0x11] * 16)
    config, pieces, weights = read_file(a_file({"l1.q.w": (True, 64, blocks), "emb.ln.b": (False, 32, ones)}))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (64, 40, 16)
    assert config.layer_norm_eps == pytest.approx(1e-12)
    assert pieces == WORDS
    first = [-4.0, 3.5] + [0.0] * 14 + [0.5] + [0.0] * 15
    assert weights["encoder.layer.1.attention.self.query.weight"].tolist() == first + [-14.0] * 32
    assert torch.equal(weights["embeddings.LayerNorm.bias"], torch.ones(32))


def test_every_tensor_has_its_name_in_a_bert() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=1), add_pooling_layer=False)
    names = {"emb.word", "emb.pos", "emb.type", "emb.ln.w", "emb.ln.b"}
    names |= {f"l0.{module}.{kind}" for module in ("q", "k", "v", "ao", "aln", "fi", "fo", "oln") for kind in "wb"}
    assert {berts_name(name) for name in names} == set(model.state_dict())


def test_the_tokenizer_takes_the_likeliest_words_and_normalises() -> None:
    tokenizer = build_tokenizer(WORDS, longest=16)
    # A ligature and full-width letters become plain ones, other spaces and runs of them one space.
    assert tokenizer.tokenize("für\u3000 ﬁ") == ["▁für", "▁", "f", "i"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("\uff46ür x")["input_ids"]) == [
        "<s>",
        "▁für",
        "▁",
        "<unk>",
        "</s>",
    ]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (1, 16)
