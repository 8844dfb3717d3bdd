"""A converted checkpoint computes what the original project computes, which is written out here a second time.

python -m pytest tests/test_convert_original.py -q
"""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import tinybert
from conftest import TEXTS
from fresh_process import run_stranger
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer

from tinybert_hf import TinyBertModel
from tinybert_hf.convert_original import convert_checkpoint, convert_state_dict, load_state_dict
from tinybert_hf.errors import InputError, UnreadableError

SMALL = {"vocab_size": 120, "hidden": 24, "layers": 2, "intermediate": 40, "positions": 16}
FULL = {"vocab_size": 500, "hidden": 768, "layers": 8, "intermediate": 1600, "positions": 350}
PAD = 3


def original_state_dict(
    vocab_size: int,
    hidden: int,
    layers: int,
    intermediate: int,
    positions: int,
    scalar_norms: bool = False,
    batched_positions: bool = True,
) -> dict[str, Tensor]:
    """Random weights under the original names; the norms' numbers too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * std + mean

    state_dict = {
        "emb.src_emb.embedd.weight": normal(vocab_size, hidden, std=0.05),
        "emb.se_emb.segment_embedd.weight": normal(2, hidden),
        "emb.pe_emb.pe": normal(*((1,) if batched_positions else ()), positions, hidden),
    }
    for layer in range(layers):
        prefix = f"encoder.encoders.{layer}"
        for name, outputs, inputs in (
            ("attention.q", hidden, hidden),
            ("attention.k", hidden, hidden),
            ("attention.v", hidden, hidden),
            ("attention.w_o", hidden, hidden),
            ("feedfwd.linear_1", intermediate, hidden),
            ("feedfwd.linear_2", hidden, intermediate),
        ):
            state_dict[f"{prefix}.{name}.weight"] = normal(outputs, inputs, std=inputs**-0.5)
            state_dict[f"{prefix}.{name}.bias"] = normal(outputs, std=0.5)
        for norm in (0, 1):
            size = 1 if scalar_norms else hidden
            state_dict[f"{prefix}.residual.{norm}.norm.alpha"] = normal(size, std=0.3, mean=1.0)
            state_dict[f"{prefix}.residual.{norm}.norm.bias"] = normal(size, std=0.3)
    return state_dict


def original_embeddings(w: dict[str, Tensor], ids: Tensor, segments: Tensor, heads: int) -> Tensor:
    """The original project's arithmetic in plain tensor operations: (B, T) ids -> (B, H), the first token's state."""
    num_layers = sum(name.endswith("attention.q.weight") for name in w)
    batch_size, num_tokens = ids.shape
    hidden = w["emb.src_emb.embedd.weight"].shape[1]

    def norm(x: Tensor, prefix: str) -> Tensor:
        spread = x.std(dim=-1, keepdim=True)  # over H - 1
        centred = x - x.mean(dim=-1, keepdim=True)
        return w[f"{prefix}.alpha"] * centred / (spread + 1e-6) + w[f"{prefix}.bias"]

    def linear(x: Tensor, prefix: str) -> Tensor:
        return x @ w[f"{prefix}.weight"].T + w[f"{prefix}.bias"]

    def split_heads(x: Tensor) -> Tensor:
        return x.reshape(batch_size, num_tokens, heads, hidden // heads).transpose(1, 2)

    x = w["emb.src_emb.embedd.weight"][ids] * math.sqrt(hidden)
    x = x + w["emb.se_emb.segment_embedd.weight"][segments]
    x = x + w["emb.pe_emb.pe"].reshape(-1, hidden)[:num_tokens]
    is_padding = (ids == PAD)[:, None, None, :]
    for layer in range(num_layers):
        prefix = f"encoder.encoders.{layer}"
        normed = norm(x, f"{prefix}.residual.0.norm")
        q, k, v = (split_heads(linear(normed, f"{prefix}.attention.{name}")) for name in ("q", "k", "v"))
        scores = (q @ k.transpose(2, 3) / math.sqrt(hidden // heads)).masked_fill(is_padding, -1e9)
        context = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch_size, num_tokens, hidden)
        x = x + linear(context, f"{prefix}.attention.w_o")
        normed = norm(x, f"{prefix}.residual.1.norm")
        up = linear(normed, f"{prefix}.feedfwd.linear_1").clamp(min=0)
        x = x + linear(up, f"{prefix}.feedfwd.linear_2")
    return x[:, 0]


def padded_batch(vocab_size: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids of three texts of unlike length, the second half of each a second segment, padded; and the segments."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, vocab_size, (3, num_tokens), generator=generator)
    segments = torch.zeros_like(ids)
    for row, length in enumerate((num_tokens, num_tokens // 2, 3)):
        segments[row, length // 2 : length] = 1
        ids[row, length:] = PAD
    return ids, segments


def original_tokenizer(vocab_size: int = 120) -> Tokenizer:
    """As the original project trains it: cased, split at white space and punctuation, no template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *(text.title() for text in TEXTS)], trainer)
    return tokenizer


@pytest.fixture
def original(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of stage one and its tokenizer file."""
    checkpoint, tokenizer = tmp_path / "model.pt", tmp_path / "tokenizer-wiki.json"
    torch.save({"model": original_state_dict(**SMALL), "classifier": {"weight": torch.ones(2, 24)}}, checkpoint)
    original_tokenizer().save(str(tokenizer))
    return checkpoint, tokenizer


# ---- Arithmetic ----


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, heads",
    [
        pytest.param(SMALL, 4, id="small"),
        pytest.param(SMALL | {"scalar_norms": True, "batched_positions": False}, 3, id="scalar-norms"),
        pytest.param(FULL, 12, id="default-specification"),
    ],
)
def test_the_converted_model_computes_the_original_embeddings(sizes: dict[str, Any], heads: int) -> None:
    state_dict = original_state_dict(**sizes)
    ids, segments = padded_batch(sizes["vocab_size"], num_tokens=min(sizes["positions"], 40))
    assert (ids == PAD).any()
    with torch.no_grad():
        expected = original_embeddings(state_dict, ids, segments, heads)
        model = convert_state_dict(state_dict, num_attention_heads=heads)
        ours = model(ids, attention_mask=(ids != PAD).long(), token_type_ids=segments).pooler_output
    assert ((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-5
    alone = convert_state_dict(state_dict, num_attention_heads=heads)(ids[2:, :3], token_type_ids=segments[2:, :3])
    assert (alone.pooler_output - expected[2:]).norm() / expected[2:].norm() < 1e-5


def test_every_size_but_the_heads_is_read_from_the_tensors() -> None:
    config = convert_state_dict(original_state_dict(**SMALL)).config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (120, 24, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.type_vocab_size) == (40, 16, 2)
    assert (config.num_attention_heads, config.pooling) == (12, "cls")
    assert config.position_embedding_type == "sinusoidal"
    with pytest.raises(InputError, match=r"^The checkpoint is no original .*hidden_size=24 .* num_attention_heads=7"):
        convert_state_dict(original_state_dict(**SMALL), num_attention_heads=7)


# ---- The folder ----


@pytest.mark.slow
def test_the_command_makes_a_folder_that_a_stranger_loads(
    original: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "converted"
    done = tinybert("convert", *original, folder, "--num_attention_heads", "4")
    assert done.status == 0, done.err
    assert "Left out of the conversion: classifier." in caplog.text
    assert "2 layers of 24, 4 heads, 120 tokens, context 16" in done.out

    printed = run_stranger(
        f"""
        import torch
        from transformers import AutoModel, AutoTokenizer
        model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=False)
        batch = tokenizer(["play Music", "Edit text in a window"], padding=True, return_tensors="pt")
        assert batch["attention_mask"].min() == 0
        assert torch.equal(batch["input_ids"] == 3, batch["attention_mask"] == 0)
        with torch.inference_mode():
            torch.save((dict(batch), model(**batch).pooler_output), "result.pt")
        print(type(model).__module__.partition(".")[0], tokenizer.model_max_length)
        """,
        home=tmp_path,
    )
    assert printed.split() == ["transformers_modules", "16"]
    batch, embeddings = torch.load(tmp_path / "result.pt")
    expected = original_embeddings(original_state_dict(**SMALL), batch["input_ids"], batch["token_type_ids"], heads=4)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_keeps_its_casing_and_gains_the_template(original: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    convert_checkpoint(*original, folder)
    tokenizer, before = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(original[1]))
    cased, lower = (before.encode(text, add_special_tokens=False).ids for text in ("Play Music", "play music"))
    assert cased != lower
    encoded = tokenizer("Play Music", "play music")
    assert encoded["input_ids"] == [1, *cased, 2, *lower, 2]
    assert encoded["token_type_ids"] == [0] * (len(cased) + 2) + [1] * (len(lower) + 1)
    assert len(tokenizer("edit text " * 30, truncation=True)["input_ids"]) == SMALL["positions"]


# ---- Refusals ----


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(container: str, tmp_path: Path) -> None:
    side_effect, checkpoint = tmp_path / "it-ran", tmp_path / "model.pt"
    content = {"model": original_state_dict(**SMALL), "classifier": RunsCode(side_effect)}
    if container == "pickle":
        checkpoint.write_bytes(pickle.dumps({"model": RunsCode(side_effect)}, protocol=2))
    else:
        torch.save(content, checkpoint, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(InputError, match=r"model\.pt is refused: .*(posix\.system|no file of tensors)") as error:
        load_state_dict(checkpoint)
    assert "Nothing in it was run" in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own advice is to load it all the same
    assert not side_effect.exists()
    if container == "pickle":  # the trap is armed: an ordinary load springs it
        pickle.loads(checkpoint.read_bytes())
    else:
        torch.load(checkpoint, weights_only=False)
    assert side_effect.exists()


def test_the_command_refuses_a_hostile_pickle_with_a_message(original: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tokenizer = original
    torch.save({"model": RunsCode(tmp_path / "it-ran")}, checkpoint)
    done = tinybert("convert", checkpoint, tokenizer, tmp_path / "converted")
    assert done.status == 1
    assert done.err.startswith(f"error: {checkpoint} is refused: it holds posix.system")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("content", [b"", b"hello world", b'{"model": 1}'])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt is refused: it is no file of tensors"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": {}}, "it is no file of tensors"),
        ([1, 2], "it is no file of tensors"),
        ({"model": [torch.ones(2)]}, "it is no file of tensors"),
        ({"model": {"epoch": 3}}, "epoch is no plain tensor of numbers"),
        ({"model": {"a": torch.ones(2, dtype=torch.int64)}}, "a is no plain tensor of numbers"),
        ({"model": {"a": torch.ones(2, dtype=torch.complex64)}}, "a is no plain tensor of numbers"),
        ({"model": {"a": torch.zeros(1).expand(2**31)}}, "a is no plain tensor of numbers"),
        ({"model": {"a": torch.zeros(2**40, device="meta")}}, "a is no plain tensor of numbers"),
        ({"model": {"a": torch.eye(2).to_sparse()}}, "a is no plain tensor of numbers"),
    ],
)
def test_a_checkpoint_of_another_layout_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=message):
        load_state_dict(tmp_path / "model.pt")


def test_missing_unexpected_and_misshapen_tensors_are_named() -> None:
    state_dict = original_state_dict(**SMALL)
    state_dict["encoder.encoders.0.attention.query.weight"] = state_dict.pop("encoder.encoders.0.attention.q.weight")
    state_dict["encoder.encoders.1.feedfwd.linear_2.bias"] = torch.zeros(5)
    state_dict["encoder.encoders.1.residual.0.norm.alpha"] = torch.zeros(2)
    with pytest.raises(InputError) as error:
        convert_state_dict(state_dict)
    message = str(error.value)
    assert 'Missing key(s) in state_dict: "layers.0.attention.qkv.weight".' in message
    assert 'Unexpected key(s) in state_dict: "layers.0.attention.query.weight".' in message
    for name, size in (("mlp.down.bias", 5), ("attention_norm.weight", 2)):
        assert f"layers.1.{name}: copying a param with shape torch.Size([{size}])" in message
    assert "\n" not in message


def test_sizes_that_a_few_numbers_declare_take_no_memory() -> None:
    state_dict = original_state_dict(**SMALL)
    state_dict["emb.src_emb.embedd.weight"] = torch.zeros(1, 10_000_000)
    with pytest.raises(InputError, match=r"size mismatch for layers\.0\.attention\.qkv\.weight"):
        convert_state_dict(state_dict, num_attention_heads=10)


@pytest.mark.parametrize(
    "name",
    [
        "emb.src_emb.embedd.weight",
        "emb.se_emb.segment_embedd.weight",
        "emb.pe_emb.pe",
        "encoder.encoders.0.feedfwd.linear_1.weight",
    ],
)
def test_a_tensor_that_tells_a_size_is_named_where_it_is_missing(name: str) -> None:
    state_dict = original_state_dict(**SMALL)
    del state_dict[name]
    with pytest.raises(InputError, match=name):
        convert_state_dict(state_dict)


def test_the_file_of_a_checkpoint_without_a_tensor_is_named(original: tuple[Path, Path], tmp_path: Path) -> None:
    state_dict = original_state_dict(**SMALL)
    del state_dict["encoder.encoders.1.residual.1.norm.alpha"]
    torch.save({"model": state_dict}, original[0])
    with pytest.raises(InputError, match=r"/model\.pt is no original model of 12 heads: .*Missing key"):
        convert_checkpoint(*original, tmp_path / "converted")


def test_a_folder_that_is_not_empty_is_left_alone(original: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UnreadableError, match="mine exists and is not an empty folder"):
        convert_checkpoint(*original, folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_tokenizer_larger_than_the_model_is_refused(original: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tokenizer = original
    original_tokenizer(vocab_size=121).save(str(tokenizer))
    with pytest.raises(InputError, match=r"has 121 tokens, but .* has embeddings for 120"):
        convert_checkpoint(checkpoint, tokenizer, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_file_that_is_no_tokenizer_is_named(original: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tokenizer = original
    for content in (b'{"version": "1.0"}', b"\xff\xfe"):
        tokenizer.write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer-wiki\.json is no file of the tokenizers library"):
            convert_checkpoint(checkpoint, tokenizer, tmp_path / "converted")


def test_the_converted_model_trains_from_the_folder(original: tuple[Path, Path], tmp_path: Path) -> None:
    convert_checkpoint(*original, tmp_path / "converted")
    loaded = TinyBertModel.from_pretrained(tmp_path / "converted")
    for name, tensor in convert_state_dict(original_state_dict(**SMALL)).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert tensor.is_contiguous(), name
