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
from .modeling_tinybert import TinyBertModel, from_bert, rename
from .tokenization import save_tokenizer, wrap_tokenizer

logger = logging.getLogger(__name__)

WEIGHTS = {  # its names and BERT's
    "emb.src_emb.embedd.": "embeddings.word_embeddings.",
    "emb.se_emb.segment_embedd.": "embeddings.token_type_embeddings.",
    "emb.pe_emb.pe": "embeddings.position_embeddings.weight",
    "encoder.encoders.": "encoder.layer.",
    ".attention.q.": ".attention.self.query.",
    ".attention.k.": ".attention.self.key.",
    ".attention.v.": ".attention.self.value.",
    ".attention.w_o.": ".attention.output.dense.",
    ".residual.0.norm.": ".attention.output.LayerNorm.",
    ".feedfwd.linear_1.": ".intermediate.dense.",
    ".feedfwd.linear_2.": ".output.dense.",
    ".residual.1.norm.": ".output.LayerNorm.",
    "alpha": "weight",
}


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors under `"model"` in a file that `torch.save` wrote, in fp32; says what else it holds and leaves it out.

    Raises: InputError: if it is not such a file, or loading it would run code; none has run then.
    """
    state_dict, wrong = {}, "it is no file of tensors"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name, tensor in checkpoint.pop("model").items():
            wrong = f"{name} is no plain tensor of numbers"  # or declares more of them than it holds
            if not tensor.is_floating_point() or tensor.is_meta or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError(wrong)
            state_dict[str(name)] = tensor.float()
    except OSError:
        raise
    except Exception as error:  # the unpickler fails in many ways, and advises to load it all the same
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, and loading that could run code" if found else wrong
        raise InputError(
            f"{path} is refused: {reason}. Nothing in it was run. "
            'Pass a file of tensors alone, as torch.save({"model": model.state_dict()}, path) writes it.'
        ) from error
    if checkpoint:
        logger.info("Left out of the conversion: %s. Only the encoder is converted.", ", ".join(map(str, checkpoint)))
    return state_dict


def convert_state_dict(
    state_dict: dict[str, Tensor], num_attention_heads: int = 12, source: str | Path = "The checkpoint"
) -> TinyBertModel:
    """The original project's encoder as a `TinyBertModel` of the same arithmetic, in fp32. Messages name the `source`.

    Raises: InputError: if a tensor is missing, unexpected or of the wrong shape, or the heads do not divide H.
    """
    berts = {}
    try:
        positions = state_dict["emb.pe_emb.pe"]
        positions = positions.reshape(positions.shape[-2:])  # (1, positions, H) in some
        vocab_size, hidden_size = state_dict["emb.src_emb.embedd.weight"].shape
        config = TinyBertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=sum(name.endswith(".attention.w_o.weight") for name in state_dict),
            num_attention_heads=num_attention_heads,
            intermediate_size=len(state_dict["encoder.encoders.0.feedfwd.linear_1.weight"]),
            max_position_embeddings=len(positions),
            type_vocab_size=len(state_dict["emb.se_emb.segment_embedd.weight"]),
            position_embedding_type="sinusoidal",
            pooling="cls",
            layer_norm_eps=1e-12,  # the original adds its 1e-6 to the standard deviation, where it hardly counts
        )
        for name, tensor in (state_dict | {"emb.pe_emb.pe": positions}).items():
            if name.endswith(".norm.alpha"):  # the original's deviations are over H - 1, LayerNorm's over H
                tensor = tensor * math.sqrt((hidden_size - 1) / hidden_size)
            if ".norm." in name and tensor.numel() == 1:  # one number for all H
                tensor = tensor.flatten().expand(hidden_size)
            berts[rename(name, WEIGHTS)] = tensor
        weights = from_bert(berts)
        with torch.device("meta"):  # takes no memory; says which tensors do not fit
            TinyBertModel(config).load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{source} is no original model of {num_attention_heads} heads: {reason}") from error
    model = TinyBertModel(config).eval()
    model.load_state_dict(weights)
    return model


def convert_checkpoint(
    checkpoint: str | Path, tokenizer: str | Path, output: str | Path, num_attention_heads: int = 12
) -> TinyBertModel:
    """Convert an original checkpoint and its tokenizer file; nothing is written unless both are sound.

    They are the original `model.pt` and `tokenizer-wiki.json`, whose casing stays. Raises: OSError: if a file cannot be read,
    or `output` exists and is not an empty folder. InputError: if a file is of another kind, or the two do not fit together.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UnreadableError(f"{output} exists and is not an empty folder. Choose another OUT, or remove it.")
    model = convert_state_dict(load_state_dict(checkpoint), num_attention_heads, checkpoint)
    config: Any = model.config
    content = Path(tokenizer).read_bytes()
    try:
        backend = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{tokenizer} is no file of the tokenizers library: {error}") from error
    wrapped = wrap_tokenizer(backend, config.max_position_embeddings)
    if (num_tokens := max(wrapped.get_vocab().values()) + 1) > config.vocab_size:
        raise InputError(
            f"{tokenizer} has {num_tokens} tokens, but {checkpoint} has embeddings for {config.vocab_size}; they are not of "
            "the same model."
        )
    model.save_pretrained(output)
    save_tokenizer(wrapped, output)
    return model
