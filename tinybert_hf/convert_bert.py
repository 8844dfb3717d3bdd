"""The encoder of a folder or Hub id; another project's has its weights under our names, its arithmetic unchanged.

all-MiniLM-L6-v2, e5-small, bge-small and most other small encoders for search are BERT models (Devlin et al. 2018,
arXiv:1810.04805), or compute what one computes (`ENCODERS`). Shapes: H hidden size, L layers.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .configuration_tinybert import TinyBertConfig
from .errors import InputError, UnreadableError
from .files import read_json
from .loading import load_model, load_tokenizer, loading
from .modeling_tinybert import TinyBertPreTrainedModel, from_bert, rename

ENCODERS = ("bert", "camembert", "distilbert", "roberta", "xlm-roberta")
# BERT's sizes that are taken over; DistilBERT (Sanh et al. 2019, arXiv:1910.01108) has other names for some.
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")
RENAMED_SIZES = {
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
DISTILBERT_WEIGHTS = {  # its names and BERT's
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}
# What --config_overrides may change of a BERT: what no weight depends on, and how much of the encoder is kept.
OPEN_OF_BERT = {
    *("num_hidden_layers", "max_position_embeddings", "pooling"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
}


@dataclass
class Start:
    """A configuration, the tokenizer that belongs to it, and weights, if they are not random."""

    config: TinyBertConfig
    tokenizer: PreTrainedTokenizerBase
    source: str | None = None  # the folder or Hub id; None where the weights are random
    revision: str | None = None
    weights: dict[str, Tensor] | None = None  # where they are not those of the files

    def load(self, model_class: type[TinyBertPreTrainedModel], dtype: torch.dtype | None = None) -> Any:
        """The model. A classifier that the weights have not, or for other labels, is random."""
        if self.source is None:
            return model_class(self.config)
        files = None if self.weights else self.source
        options = {"config": self.config, "state_dict": self.weights, "revision": self.revision, "dtype": dtype}
        return load_model(model_class, self.source, files, may_be_new=("classifier.",), **options)


def load_encoder(source: str, overrides: str | None = None, revision: str | None = None) -> Start:
    """The encoder of a folder or Hub id: a TinyBERT, or a BERT, also a SentenceTransformer's, as one that computes the same.

    `overrides` (`--config_overrides`) may change a BERT. Fewer `num_hidden_layers` keep that many layers, evenly spaced
    from the first to the last; fewer `max_position_embeddings` the first positions.

    Raises: InputError: if there is no such model, it is of another kind or damaged, or `overrides` contradict its
        configuration or weights.
    """
    with loading(source):
        theirs = load_config(source, revision)
    if theirs.model_type == TinyBertConfig.model_type:
        own, asked = theirs.to_dict(), override_config(theirs, overrides).to_dict()
        if other := sorted(f"{name}={own[name]}" for name, value in asked.items() if value != own[name]):
            raise InputError(
                f"--config_overrides {overrides}: --model {source} is a tinybert model, which brings its own "
                f"configuration ({', '.join(other)}). Leave one of them out."
            )
        return Start(theirs, load_tokenizer(source, theirs.vocab_size, revision), source, revision)
    tokenizer = load_bert_tokenizer(source, theirs, revision)
    with loading(source):
        whole = read_config(source, theirs, tokenizer, revision)
    config = override_config(whole, overrides)
    changed = {name for name, value in config.to_dict().items() if value != whole.to_dict()[name]}
    if closed := sorted(changed - OPEN_OF_BERT):
        raise InputError(
            f"--config_overrides {overrides}: the weights of --model {source} fix {', '.join(closed)}. "
            f"Only {', '.join(sorted(OPEN_OF_BERT))} can be changed."
        )
    for name, least, most in (
        ("num_hidden_layers", 1, theirs.num_hidden_layers),
        ("max_position_embeddings", 3, theirs.max_position_embeddings - first_position(theirs)),
    ):
        if name in changed and not least <= getattr(config, name) <= most:
            limits = f"{name} must be from {least} to {most} for --model {source}."
            raise InputError(f"--config_overrides {overrides}: {limits}")
    tokenizer.model_max_length = config.max_position_embeddings
    return Start(config, tokenizer, source, revision, load_weights(source, theirs, config, revision))


def override_config(config: TinyBertConfig, overrides: str | None) -> TinyBertConfig:
    """A copy of `config` with what `--config_overrides` asks, as name=value,name=value."""
    changed = copy.deepcopy(config)
    if overrides and not all("=" in part for part in overrides.split(",")):
        raise InputError(f"--config_overrides {overrides}: expected name=value,name=value.")
    try:
        if overrides:
            changed.update_from_string(overrides)
        return TinyBertConfig.from_dict(changed.to_dict())  # checks the values together
    except ValueError as error:
        raise InputError(f"--config_overrides {overrides}: {error}") from error


def load_config(source: str, revision: str | None = None) -> Any:
    """The configuration of a TinyBERT, or of an encoder that becomes one; ValueError for other kinds."""
    kind = TinyBertConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if kind == TinyBertConfig.model_type:
        return TinyBertConfig.from_pretrained(source, revision=revision)
    if kind not in ENCODERS:
        raise ValueError(f"it is a {kind} model; what works: {TinyBertConfig.model_type}, {', '.join(ENCODERS)}.")
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def load_weights(source: str, bert_config: Any, config: TinyBertConfig, revision: str | None) -> dict[str, Tensor]:
    """The fp32 weights of the layers and positions that `config` keeps, under our names; UnreadableError if any are missing."""
    bert_config._attn_implementation = "eager"  # a file could name another repository's, which would be fetched and run
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "dtype": torch.float32}
    with loading(source):
        bert, found = AutoModel.from_pretrained(source, config=bert_config, output_loading_info=True, **options)
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UnreadableError(f"Could not load the model {source}: its weights lack {missing[0]}.")
    weights = bert.state_dict()
    if bert_config.model_type == "distilbert":
        weights = {rename(name, DISTILBERT_WEIGHTS): tensor for name, tensor in weights.items()}
        # It knows no segments; adding 0 is the same.
        weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    own = from_bert(weights)
    positions = own["embeddings.positions"][first_position(bert_config) :]
    own["embeddings.positions"] = positions[: config.max_position_embeddings]
    kept = torch.linspace(0, bert_config.num_hidden_layers - 1, config.num_hidden_layers).round().int().tolist()
    parts = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(kept)} | {"embeddings.": "embeddings."}
    return {rename(name, parts): tensor for name, tensor in own.items() if name.startswith(tuple(parts))}


def first_position(bert_config: Any) -> int:
    """The row of the table of positions that a text's first token takes: RoBERTa and its kin count from the padding's."""
    return bert_config.pad_token_id + 1 if bert_config.model_type not in ("bert", "distilbert") else 0


def load_bert_tokenizer(source: str, bert_config: Any, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder; InputError if `tokenizers` does not run it, or it lacks words or padding."""
    tokenizer = load_tokenizer(source, bert_config.vocab_size, revision)
    made_up = len(tokenizer) == len(tokenizer.all_special_ids)  # by transformers, where there is none
    for wrong, problem in (
        (not tokenizer.is_fast, "is a slow one. Save it with the fast class of transformers."),
        (made_up, "has no words. Put its files into the folder."),
        (tokenizer.pad_token is None, "has no padding. Name its pad_token in tokenizer_config.json."),
    ):
        if wrong:
            raise InputError(f"The tokenizer of --model {source} {problem}")
    tokenizer.padding_side = "right"
    if getattr(bert_config, "type_vocab_size", 1) == 1:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def read_config(
    source: str, bert_config: Any, tokenizer: PreTrainedTokenizerBase, revision: str | None
) -> TinyBertConfig:
    """Configuration of a TinyBERT that computes what an encoder computes, or InputError where none does.

    A SentenceTransformer's pooling, prompts and maximum length are kept. The tokenizer decides how to pad:
    multilingual-e5-small is a BERT with XLM-R's tokenizer.
    """
    positions = getattr(bert_config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise InputError(f"--model {source} has {positions} positions; only absolute ones are supported.")
    if getattr(bert_config, "is_decoder", False):
        raise InputError(f"--model {source} is a decoder; only encoders are supported.")
    renamed = RENAMED_SIZES if bert_config.model_type == "distilbert" else {}
    longest = bert_config.max_position_embeddings - first_position(bert_config)
    max_length = read_settings(source, "sentence_bert_config.json", revision).get("max_seq_length")
    return TinyBertConfig(
        **{name: getattr(bert_config, renamed.get(name, name)) for name in (*SIZES, *RENAMED_SIZES)},
        max_position_embeddings=min(max_length or tokenizer.model_max_length, longest),
        position_embedding_type="learned",
        norm_position="post",
        type_vocab_size=getattr(bert_config, "type_vocab_size", 1),
        pooling=read_pooling(source, revision),
        layer_norm_eps=getattr(bert_config, "layer_norm_eps", 1e-12),
        pad_token_id=tokenizer.pad_token_id,
        prompts=read_prompts(source, revision),
    )


def read_prompts(source: str, revision: str | None) -> dict[str, str]:
    """What a SentenceTransformer puts before a query and before a document."""
    settings = read_settings(source, "config_sentence_transformers.json", revision)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if default and default not in prompts:
        raise InputError(f"--model {source} has no prompt {default!r}, its default_prompt_name; it has {[*prompts]}.")
    found = {}
    for kind, names in {"query": ["query"], "document": ["document", "passage", "corpus"]}.items():
        # sentence-transformers saves an empty one beside one of another name.
        known = sorted((prompts[name] or "" for name in names if name in prompts), key=bool, reverse=True)
        found[kind] = known[0] if known else prompts[default] if default else ""
    return found


def read_pooling(source: str, revision: str | None) -> str:
    """How a SentenceTransformer pools; of a folder that does not say, the mean."""
    listed = read_settings(source, "modules.json", revision)
    modules = {module["type"].split(".")[-1]: module["path"] for module in listed}
    if more := ", ".join(sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})):
        raise InputError(f"--model {source} has more layers after its encoder, which is not supported: {more}.")
    if "Pooling" not in modules:
        return "mean"
    settings = read_settings(source, f"{modules['Pooling']}/config.json", revision)
    names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}  # of older sentence-transformers
    older = [names.get(name, name) for name, on in settings.items() if on and name.startswith("pooling_mode_")]
    modes = settings.get("pooling_mode", older)
    modes = [modes] if isinstance(modes, str) else modes
    if modes not in (["cls"], ["mean"]):
        raise InputError(f"--model {source} pools by {', '.join(modes)}; only the first token (cls) or the mean works.")
    if not settings.get("include_prompt", True) and any(read_prompts(source, revision).values()):
        raise InputError(f"--model {source} leaves its prompts out of the pooling, which is not supported.")
    return modes[0]


def read_settings(source: str, name: str, revision: str | None) -> Any:
    """A JSON file of a folder or a Hub repository; empty if there is none."""
    path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return read_json(Path(path)) if path else {}
