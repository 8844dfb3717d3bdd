"""tinybert convert: the original project's weights as a model folder."""

from pathlib import Path
from typing import Any

from .terminal import log_progress


def convert(checkpoint: Path, tokenizer: Path, out: Path, /, *, num_attention_heads: int = 12) -> None:
    """Turn the original project's weights and tokenizer into a folder that transformers loads.

        tinybert convert model.pt tokenizer-wiki.json converted
        tinybert train retrieval --model converted

    Args:
        checkpoint: The original model.pt: {"model": state_dict}.
        tokenizer: The original tokenizer-wiki.json.
        out: The folder to make.
        num_attention_heads: Number of attention heads of the original model. Its file does not say it.
    """
    log_progress()
    from ..convert_original import convert_checkpoint

    config: Any = convert_checkpoint(checkpoint, tokenizer, out, num_attention_heads).config
    print(
        f"Saved {out}: {config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.vocab_size} tokens, context {config.max_position_embeddings}."
    )
