"""The original project's weights and tokenizer to a model folder. Shapes: H hidden size."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .configuration_tinybert import TinyBertConfig
from .errors import InputError, UnreadableError
from .modeling_tinybert import TinyBertModel
from .tokenization import save_tokenizer, wrap_tokenizer

logger = logging.getLogger(__name__)

TOKENS = "emb.src_emb.embedd.weight"  # (vocabulary, H)
SEGMENTS = "emb.se_emb.segment_embedd.weight"  # (segments, H)
POSITIONS = "emb.pe_emb.pe"  # (positions, H) or (1, positions, H)
LAYER = "encoder.encoders"


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors under `"model"` in a file that `torch.save` wrote; says what else it holds and leaves it out.

    Raises: InputError: if it is not such a file, or loading it would run code; none has run then.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler fails in many ways
        # Its own message advises to load it all the same.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, and loading that could run code" if found else "it is no file of tensors"
        raise InputError(
            f"{path} is refused: {reason}. Nothing in it was run. "
            'Pass a file of tensors alone, as torch.save({"model": model.state_dict()}, path) writes it.'
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        keys = f"the keys {list(checkpoint)}" if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise InputError(f'{path} must hold {{"model": state_dict}}; it holds {keys}.')
    if left_out := [str(key) for key in checkpoint if key != "model"]:
        logger.info("Left out of the conversion: %s. Only the encoder is converted.", ", ".join(left_out))
    state_dict = checkpoint["model"]
    if strange := [str(name) for name, value in state_dict.items() if not (type(name) is str and is_plain(value))]:
        raise InputError(f"{path} has values that are no plain tensors of numbers: {', '.join(strange)}.")
    return state_dict


def is_plain(value: Any) -> bool:
    """Whether it is a tensor of floats that is all there: one may declare a size of which it holds a single number."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return dense and value.is_floating_point() and value.nbytes <= value.untyped_storage().nbytes()


def read_sizes(state_dict: dict[str, Tensor], num_attention_heads: int = 12) -> TinyBertConfig:
    """The sizes of the model, which the tensors tell, all but the number of heads."""

    def shape(name: str) -> torch.Size:
        if name not in state_dict or state_dict[name].dim() != 2:
            found = tuple(state_dict[name].shape) if name in state_dict else "none"
            raise InputError(f"The checkpoint must have a matrix {name}; found: {found}.")
        return state_dict[name].shape

    layers = {match[1] for name in state_dict if (match := re.match(rf"{LAYER}\.(\d+)\.", name))}
    try:
        return TinyBertConfig(
            vocab_size=shape(TOKENS)[0],
            hidden_size=shape(TOKENS)[1],
            num_hidden_layers=len(layers),
            num_attention_heads=num_attention_heads,
            intermediate_size=shape(f"{LAYER}.0.feedfwd.linear_1.weight")[0],
            max_position_embeddings=shape(POSITIONS)[0],
            type_vocab_size=shape(SEGMENTS)[0],
            position_embedding_type="sinusoidal",
            pooling="cls",
            layer_norm_eps=1e-12,  # the original adds its 1e-6 to the standard deviation, where it hardly counts
        )
    except ValueError as error:  # the heads do not divide the width
        raise InputError(str(error)) from error


def check_names_and_shapes(state_dict: dict[str, Tensor], config: TinyBertConfig) -> None:
    """Raise InputError naming every tensor that is missing, unexpected or of the wrong shape."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    expected: dict[str, tuple[int, ...]] = {
        TOKENS: (config.vocab_size, hidden),
        SEGMENTS: (config.type_vocab_size, hidden),
        POSITIONS: (config.max_position_embeddings, hidden),
    }
    matrices = {f"attention.{name}": (hidden, hidden) for name in ("q", "k", "v", "w_o")}
    matrices |= {"feedfwd.linear_1": (intermediate, hidden), "feedfwd.linear_2": (hidden, intermediate)}
    for layer in range(config.num_hidden_layers):
        for name, shape in matrices.items():
            expected |= {f"{LAYER}.{layer}.{name}.weight": shape, f"{LAYER}.{layer}.{name}.bias": shape[:1]}
        norms = [f"{LAYER}.{layer}.residual.{norm}.norm.{kind}" for norm in (0, 1) for kind in ("alpha", "bias")]
        expected |= dict.fromkeys(norms, (hidden,))
    problems = {
        "missing": [name for name in expected if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in expected],
        "wrong": [
            f"{name} has the shape {tuple(state_dict[name].shape)}, not {wanted}"
            for name, wanted in expected.items()
            if name in state_dict
            and tuple(state_dict[name].shape) != wanted
            and not (".norm." in name and state_dict[name].numel() == 1)  # one number for all H
        ],
    }
    if found := "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names):
        raise InputError(f"The checkpoint is not of the original project. {found}.")


def convert_state_dict(state_dict: dict[str, Tensor], num_attention_heads: int = 12) -> TinyBertModel:
    """The original project's encoder as a `TinyBertModel` of the same arithmetic, in fp32.

    Raises: InputError: if a tensor is missing, unexpected or of the wrong shape, or the heads do not divide H.
    """
    state_dict = {name: tensor.float() for name, tensor in state_dict.items()}
    if POSITIONS in state_dict and state_dict[POSITIONS].dim() == 3 and len(state_dict[POSITIONS]) == 1:
        state_dict[POSITIONS] = state_dict[POSITIONS][0]
    config = read_sizes(state_dict, num_attention_heads)
    check_names_and_shapes(state_dict, config)

    converted = {
        "embeddings.word_embeddings.weight": state_dict[TOKENS],
        "embeddings.token_type_embeddings.weight": state_dict[SEGMENTS],
        "embeddings.positions": state_dict[POSITIONS],
    }
    # The original divides by the standard deviation over H - 1, LayerNorm by the one over H.
    norm_scale = math.sqrt((config.hidden_size - 1) / config.hidden_size)
    for layer in range(config.num_hidden_layers):
        old, new = f"{LAYER}.{layer}", f"layers.{layer}"
        for kind in ("weight", "bias"):
            qkv = [state_dict[f"{old}.attention.{name}.{kind}"] for name in ("q", "k", "v")]
            converted[f"{new}.attention.qkv.{kind}"] = torch.cat(qkv)  # (3 x H, H) or (3 x H,)
            converted[f"{new}.attention.output.{kind}"] = state_dict[f"{old}.attention.w_o.{kind}"]
            converted[f"{new}.mlp.up.{kind}"] = state_dict[f"{old}.feedfwd.linear_1.{kind}"]
            converted[f"{new}.mlp.down.{kind}"] = state_dict[f"{old}.feedfwd.linear_2.{kind}"]
        for residual, norm in enumerate(("attention_norm", "mlp_norm")):
            alpha, bias = (state_dict[f"{old}.residual.{residual}.norm.{kind}"] for kind in ("alpha", "bias"))
            converted[f"{new}.{norm}.weight"] = (alpha * norm_scale).flatten().expand(config.hidden_size)
            converted[f"{new}.{norm}.bias"] = bias.flatten().expand(config.hidden_size)
    model = TinyBertModel(config).eval()
    model.load_state_dict(converted)
    return model


def convert_checkpoint(
    checkpoint: str | Path, tokenizer: str | Path, output: str | Path, num_attention_heads: int = 12
) -> TinyBertModel:
    """Convert an original checkpoint and its tokenizer file; nothing is written unless both are sound.

    Args:
        checkpoint: the original `model.pt`.
        tokenizer: the original `tokenizer-wiki.json`, a file of the `tokenizers` library; its casing stays.
        output: the folder to make.

    Raises:
        OSError: if a file cannot be read, or `output` exists and is not an empty folder.
        InputError: if a file is not of the original project, or the two do not fit together.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UnreadableError(f"{output} exists and is not an empty folder. Choose another OUT, or remove it.")
    model = convert_state_dict(load_state_dict(checkpoint), num_attention_heads)
    config: Any = model.config
    content = Path(tokenizer).read_bytes()
    try:
        backend = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{tokenizer} is no file of the tokenizers library: {error}") from error
    wrapped = wrap_tokenizer(backend, config.max_position_embeddings)
    if (num_tokens := max(wrapped.get_vocab().values()) + 1) > config.vocab_size:
        raise InputError(
            f"{tokenizer} has {num_tokens} tokens, but {checkpoint} has embeddings for {config.vocab_size}; "
            "they are not of the same model."
        )
    model.save_pretrained(output)
    save_tokenizer(wrapped, output)
    return model
