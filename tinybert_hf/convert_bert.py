"""Another project's BERT encoder as the start of training: its weights under our names, its arithmetic unchanged.

all-MiniLM-L6-v2, e5-small, bge-small and most other small encoders for search are BERT models (Devlin et al. 2018,
arXiv:1810.04805). Shapes: H hidden size, L layers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file

from .configuration_tinybert import TinyBertConfig
from .errors import InputError, UnreadableError
from .loading import loading


def load_weights(
    source: str, config: TinyBertConfig, num_layers: int, revision: str | None = None
) -> dict[str, Tensor]:
    """The weights of a folder's or a Hub repository's BERT of `num_layers` layers, as `convert_weights` names them.

    Raises: UnreadableError: if they cannot be read, or tensors are missing.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with loading(source):
        settings = AutoConfig.from_pretrained(source, **options)
        settings._attn_implementation = (
            "eager"  # a file could name another repository's, which would be fetched and run
        )
        bert, found = AutoModel.from_pretrained(source, config=settings, output_loading_info=True, **options)
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UnreadableError(f"Could not load the model {source}: its weights lack {missing[0]}.")
    return convert_weights(bert.state_dict(), config, num_layers)


def read_config(source: str, bert_config: Any) -> TinyBertConfig:
    """Configuration of a TinyBERT that computes what a BERT encoder computes.

    Args:
        source: a folder or Hub id; also a SentenceTransformer's, whose pooling and maximum length are kept.
        bert_config: its configuration.

    Raises: InputError: if it pools neither the first token nor the mean, has further layers behind that, or other than
        absolute positions.
    """
    positions = getattr(bert_config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise InputError(f"--model {source} has {positions} positions; only absolute ones can be taken over.")
    longest = bert_config.max_position_embeddings
    max_length = read_json(source, "sentence_bert_config.json").get("max_seq_length") or longest
    return TinyBertConfig(
        vocab_size=bert_config.vocab_size,
        hidden_size=bert_config.hidden_size,
        num_hidden_layers=bert_config.num_hidden_layers,
        num_attention_heads=bert_config.num_attention_heads,
        intermediate_size=bert_config.intermediate_size,
        hidden_act=bert_config.hidden_act,
        hidden_dropout_prob=bert_config.hidden_dropout_prob,
        attention_probs_dropout_prob=bert_config.attention_probs_dropout_prob,
        max_position_embeddings=min(max_length, longest),
        position_embedding_type="learned",
        norm_position="post",
        type_vocab_size=bert_config.type_vocab_size,
        pooling=read_pooling(source),
        initializer_range=bert_config.initializer_range,
        layer_norm_eps=bert_config.layer_norm_eps,
        pad_token_id=bert_config.pad_token_id,
    )


def read_pooling(source: str) -> str:
    """How a SentenceTransformer pools; of a folder that does not say, the mean."""
    modules = {module["type"].split(".")[-1]: module["path"] for module in read_json(source, "modules.json")}
    if more := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise InputError(
            f"--model {source} has further layers after its BERT ({', '.join(sorted(more))}), which cannot be taken over."
        )
    if "Pooling" not in modules:
        return "mean"
    settings = read_json(source, f"{modules['Pooling']}/config.json")
    if "pooling_mode" in settings:
        modes = [settings["pooling_mode"]]
    else:  # as older releases of sentence-transformers wrote it
        names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
        modes = [names.get(name, name) for name in chosen]
    if modes not in (["cls"], ["mean"]):
        raise InputError(
            f"--model {source} pools by {', '.join(modes)}; only the first token (cls) or the mean can be taken over."
        )
    return modes[0]


def read_json(source: str, name: str) -> Any:
    """A file of a folder or a Hub repository; empty if there is none."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def convert_weights(bert: dict[str, Tensor], config: TinyBertConfig, num_layers: int) -> dict[str, Tensor]:
    """BERT's tensors under the names of a `TinyBertModel`, `config.num_hidden_layers` of its L = `num_layers` layers."""
    converted = {
        "embeddings.word_embeddings.weight": bert["embeddings.word_embeddings.weight"],
        "embeddings.token_type_embeddings.weight": bert["embeddings.token_type_embeddings.weight"],
        "embeddings.positions": bert["embeddings.position_embeddings.weight"][: config.max_position_embeddings],
        "embeddings.norm.weight": bert["embeddings.LayerNorm.weight"],
        "embeddings.norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    kept = torch.linspace(0, num_layers - 1, config.num_hidden_layers).round().int().tolist()
    names = {
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    for new, old in enumerate(kept):
        for kind in ("weight", "bias"):
            qkv = [bert[f"encoder.layer.{old}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            converted[f"layers.{new}.attention.qkv.{kind}"] = torch.cat(qkv)  # (3 x H, H) or (3 x H,)
            for ours, theirs in names.items():
                converted[f"layers.{new}.{ours}.{kind}"] = bert[f"encoder.layer.{old}.{theirs}.{kind}"]
    return converted
