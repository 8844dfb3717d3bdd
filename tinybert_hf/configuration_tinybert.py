"""Configuration of the TinyBERT encoder. This file travels to the Hub with every saved model."""

from typing import Any

from transformers import PretrainedConfig, __version__
from transformers.activations import ACT2FN

if int(__version__.split(".")[0]) < 5:
    raise ImportError(f"This code needs transformers 5.0 or later, not {__version__}: pip install -U transformers")

MODES = {
    "pooling": ("cls", "mean"),
    "position_embedding_type": ("sinusoidal", "rotary", "learned"),
    "norm_position": ("pre", "post"),
    "hidden_act": tuple(ACT2FN),
}
# What a configuration file may say besides `FIELDS`. The rest of one is not taken over: it could name an attention kernel
# of another repository, which transformers would fetch and run.
COMMON_ENTRIES = {
    *("architectures", "auto_map", "custom_pipelines", "dtype", "id2label", "label2id", "model_type", "num_labels"),
    *("output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype"),
    *("transformers_version", "name_or_path", "_name_or_path", "_commit_hash", "prompts"),
}
# What the numbers may be: names, types, least, most.
RANGES: tuple[tuple[tuple[str, ...], tuple[type, ...], float, float], ...] = (
    (("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"), (int,), 1, 2**31 - 1),
    (("max_position_embeddings", "type_vocab_size"), (int,), 1, 2**31 - 1),
    (("num_hidden_layers", "rerank_depth"), (int,), 0, 1_000),
    (("pad_token_id",), (int,), 0, 2**31 - 1),
    (("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "rerank_weight"), (float, int), 0, 1),
    (("classifier_dropout",), (float, int, type(None)), 0, 1),
    (("initializer_range", "embedding_initializer_range", "residual_initializer_range"), (float, int), 0, 1e6),
)
FIELDS = [*MODES, *(name for names, *_ in RANGES for name in names)]

# What `AutoX.from_pretrained(..., trust_remote_code=True)` and `pipeline(...)` run from a model folder. Written by us
# on every save: transformers would list one class only, and prefixes a repository's name when it loads from the Hub.
AUTO_MAP = {
    "AutoConfig": "configuration_tinybert.TinyBertConfig",
    "AutoModel": "modeling_tinybert.TinyBertModel",
    "AutoModelForSequenceClassification": "modeling_tinybert.TinyBertForSequenceClassification",
}
CUSTOM_PIPELINES = {
    "semantic-search": {"impl": "pipeline_tinybert.SemanticSearchPipeline", "pt": ["AutoModel"], "type": "text"}
}


def has_berts_form(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a TinyBERT that is stored as a `BertModel`: other programs load it without our code."""
    return config.get("model_type") == "bert" and "norm_position" in config


class TinyBertConfig(PretrainedConfig):
    """Sizes and arithmetic of a TinyBERT encoder; the defaults are the full specification.

    Args:
        hidden_size: width of the encoder and of a text embedding; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer blocks; 0 leaves the embeddings alone.
        hidden_dropout_prob: dropout on the embeddings, inside and after the feed-forward layer, and after attention.
        max_position_embeddings: context length in tokens; longer inputs are an error.
        position_embedding_type: `rotary` (inside attention only, so that the mean of the token embeddings does not depend on
            a text's length; needs an even head size), or `sinusoidal` or `learned` (added to the token embeddings).
        norm_position: `pre` (LayerNorm on what enters attention and feed-forward layer) or `post`, as in BERT (on every
            sum of the residual stream, that of the embeddings included, which are then not scaled).
        pooling: `mean` (over the tokens that are not padding) or `cls` (first token).
        embedding_initializer_range: `initializer_range` of the token embedding, which must stand out from sinusoidal
            positions: their entries are about 0.7, the scaled tokens' this value times sqrt(hidden_size).
        residual_initializer_range: the same for the two matrices of a block whose output is added to the residual
            stream. At 0 a new pre-norm block starts as the identity, and a new encoder as the pooled token embeddings.
        prompts: what a text begins with, by its kind: `query` or `document`. They are part of what is encoded.
        rerank_depth: how many of its best results a search ranks anew by their tokens; 0 leaves it out.
        rerank_weight: what part of such a result's score is that of its tokens.
        classifier_dropout: dropout before the classifier; None means `hidden_dropout_prob`.

    Raises: ValueError: if a value is of another type, out of its range or unknown, or the heads do not divide the width.
    """

    model_type = "tinybert"

    def __init__(
        self,
        vocab_size: int = 30_000,
        hidden_size: int = 768,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 12,
        intermediate_size: int = 1600,
        hidden_act: str = "relu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 350,
        position_embedding_type: str = "rotary",
        norm_position: str = "pre",
        type_vocab_size: int = 2,
        pooling: str = "mean",
        initializer_range: float = 0.02,
        embedding_initializer_range: float = 0.1,
        residual_initializer_range: float = 0.0,
        layer_norm_eps: float = 1e-12,
        classifier_dropout: float | None = None,
        pad_token_id: int = 3,
        prompts: dict[str, str] | None = None,
        rerank_depth: int = 0,
        rerank_weight: float = 0.75,
        **kwargs: Any,
    ) -> None:
        arguments = locals()
        for name in FIELDS:
            setattr(self, name, arguments[name])
        self.prompts = {kind: prompt for kind, prompt in (prompts or {}).items() if prompt}
        self.check()
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a config.json says, and the arguments left over; BERT's form is read as what it is stored from."""
        config, left_over = super().get_config_dict(*args, **kwargs)
        if has_berts_form(config):
            names = [f"Tiny{name}" for name in config["architectures"]]
            config |= {"model_type": cls.model_type, "position_embedding_type": "learned", "architectures": names}
        return config, left_over

    def check(self) -> None:
        """Raises: ValueError: if the values make no model."""
        for names, numbers, least, most in RANGES:
            for name in names:
                value = getattr(self, name)
                if type(value) not in numbers or (value is not None and not least <= value <= most):
                    kind = numbers[0].__name__
                    raise ValueError(f"{name}={value!r} must be a number from {least} to {most} ({kind}).")
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}.")
        for name, modes in MODES.items():
            if (value := getattr(self, name)) not in modes:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(modes)}.")
        if self.position_embedding_type == "rotary" and self.hidden_size // heads % 2:
            sizes = f"hidden_size={self.hidden_size} over num_attention_heads={heads} is {self.hidden_size // heads}"
            raise ValueError(f"Rotary positions need heads of an even size; {sizes}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers makes it, of the entries that a configuration has."""
        known = COMMON_ENTRIES.union(FIELDS)
        return super().from_dict({name: config_dict[name] for name in config_dict if name in known}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, with the code map of a complete folder."""
        values = super().to_dict() | {"auto_map": dict(AUTO_MAP), "custom_pipelines": CUSTOM_PIPELINES}
        if not any(self.prompts.values()):
            del values["prompts"]
        return values


TinyBertConfig.register_for_auto_class()
