"""The TinyBERT encoder in PyTorch. This file travels to the Hub with every saved model.

It is the Transformer encoder of Vaswani et al. 2017 (arXiv:1706.03762) with two departures:
- pre-norm residual blocks without a final norm (Xiong et al. 2020, arXiv:2002.04745), which start as the identity;
- the text embedding is the mean of the tokens' last hidden states (or the first token's): there is no pooler layer.
With `norm_position=post` and learned positions it is that of BERT instead (Devlin et al. 2018, arXiv:1810.04805).

Shapes: B batch, T tokens, H hidden size, A attention heads.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, can_return_tuple
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_tinybert import TinyBertConfig, has_berts_form

PIPELINE_FILE = "pipeline_tinybert.py"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# What names have in place of BERT's.
BERT_NAMES = {
    "bert.": "tinybert.",
    "embeddings.LayerNorm": "embeddings.norm",
    "embeddings.position_embeddings.weight": "embeddings.positions",
    "encoder.layer.": "layers.",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
    "output.LayerNorm": "mlp_norm",
}
QKV = ("self.query", "self.key", "self.value")  # BERT's matrices in the place of one


def rename(name: str, names: dict[str, str]) -> str:
    """A tensor's name, each part of it that `names` knows in its place there."""
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], name)


def from_bert(bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors under our names; without a pooler, as ours has none."""
    own = {}
    for name, tensor in bert.items():
        own_name = rename(name, BERT_NAMES)
        parts = [name.replace(QKV[0], part) for part in QKV]
        if QKV[0] in name and bert.keys() >= set(parts):
            own[own_name.replace(QKV[0], "qkv")] = torch.cat([bert[part] for part in parts])  # (3 x H, H) or (3 x H,)
        elif "pooler." not in name and ".self." not in name:
            own[own_name] = tensor
    return own


def sinusoidal_positions(num_positions: int, hidden_size: int) -> Tensor:
    """Sine in the even columns, cosine in the odd ones (Vaswani et al. 2017, section 3.5); (positions, H), fp32."""
    frequencies = torch.exp(torch.arange(0, hidden_size, 2, dtype=torch.float32) * (-math.log(10_000.0) / hidden_size))
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies  # (positions, ceil(H / 2))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :hidden_size].contiguous()


def rotary_angles(position_ids: Tensor, head_size: int) -> Tensor:
    """The angles by which rotary positions turn pairs of a head's entries (Su et al. 2021, arXiv:2104.09864).

    (B or 1, T) position ids -> (B or 1, 1, T, head_size), fp32; the second half repeats the first.
    """
    halves = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = torch.exp(halves * (-math.log(10_000.0) / head_size))
    angles = position_ids[:, None, :, None] * frequencies
    return torch.cat((angles, angles), dim=-1)


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """Turn (B, A, T, head_size) queries or keys, entry i together with entry i + head_size / 2."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return states * angles.cos().to(states.dtype) + turned * angles.sin().to(states.dtype)


class TokenEmbedding(nn.Embedding):
    """The token embedding: a class of its own, as transformers initialises only modules that have parameters themselves."""


class TinyBertEmbeddings(nn.Module):
    """Scaled token embedding + segment embedding (+ position); post-norm: LayerNorm of the sum, and no scale."""

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__()
        self.word_embeddings: nn.Embedding = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.positions: Tensor | None
        table = torch.empty(config.max_position_embeddings, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.positions = nn.Parameter(table)
        else:
            # Saved with the weights, so that a converted checkpoint keeps its own table to the last bit.
            self.register_buffer("positions", table if config.position_embedding_type == "sinusoidal" else None)
        post_norm = config.norm_position == "post"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if post_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = 1.0 if post_norm else math.sqrt(config.hidden_size)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)  # (B, T, H)
        table = self.token_type_embeddings
        segments = table.weight[0] if token_type_ids is None else table(token_type_ids)
        hidden_states = inputs_embeds * self.scale + segments
        if self.positions is not None:
            num_tokens = inputs_embeds.shape[1]
            hidden_states = hidden_states + self.positions[slice(num_tokens) if position_ids is None else position_ids]
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return self.dropout(hidden_states)


def eager_attention_forward(
    module: "TinyBertAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, the one implementation that returns its weights.

    (B, A, T, H / A) queries, keys and values -> weighted values, (B, T, A, H / A), and weights, (B, A, T, T). The mask
    broadcasts to the weights: True for a token and False for padding, or what is added to the scores.
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, A, T, T)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ResidualLinear(nn.Linear):
    """A projection whose output is added to the residual stream; it starts from `residual_initializer_range`."""


class TinyBertAttention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.dropout_prob = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = ResidualLinear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, angles: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        batch_size, num_tokens, hidden_size = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch_size, num_tokens, 3, self.num_heads, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, A, T, H / A)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        # For ALL_ATTENTION_FUNCTIONS.get_interface(...), which transformers 5.0 has not, and later ones look for in this file.
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout_prob if self.training else 0.0
        context, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.output(context.reshape(batch_size, num_tokens, hidden_size)), weights


class TinyBertMLP(nn.Module):
    """W2 dropout(act(W1 x))."""

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = ResidualLinear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(hidden_states))))


class TinyBertLayer(GradientCheckpointingLayer):
    """Pre-norm block: x += dropout(attention(LN x)), then x += dropout(mlp(LN x)).

    Post-norm: x = LN(x + dropout(attention(x))), then x = LN(x + dropout(mlp(x))).
    """

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TinyBertAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = TinyBertMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, angles: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        inputs = self.attention_norm(hidden_states) if self.pre_norm else hidden_states
        context, weights = self.attention(inputs, mask, angles, **kwargs)
        hidden_states = hidden_states + self.dropout(context)
        if self.pre_norm:
            return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states))), weights
        hidden_states = self.attention_norm(hidden_states)
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states))), weights


def mean_over_tokens(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, T, H) -> (B, H), over the tokens that are not padding; zero where a row has none."""
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    mask = attention_mask[..., None].to(hidden_states.dtype)  # (B, T, 1)
    return (hidden_states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


class TinyBertPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving, shared by the models below."""

    config_class = TinyBertConfig
    base_model_prefix = "tinybert"
    _input_embed_layer = "word_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["TinyBertEmbeddings", "TinyBertLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers guards torch.nn.init's functions, so that loaded tensors are not overwritten; a plain copy_ is
        # not guarded, so the buffer asks for itself.
        config = self.config
        if isinstance(module, (nn.Linear, nn.Embedding)):
            own = {
                TokenEmbedding: config.embedding_initializer_range,
                ResidualLinear: config.residual_initializer_range,
            }
            nn.init.normal_(module.weight, std=own.get(type(module), config.initializer_range))
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, TinyBertEmbeddings):
            positions = module.positions
            if isinstance(positions, nn.Parameter):
                nn.init.normal_(positions, std=config.initializer_range)
            elif positions is not None and not getattr(positions, "_is_hf_initialized", False):
                positions.copy_(sinusoidal_positions(*positions.shape))

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; weights in BERT's form, in which other programs load them, become ours (`from_bert`)."""
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        if source is None or not has_berts_form(PretrainedConfig.get_config_dict(source, **hub)[0]):
            return super().from_pretrained(source, *args, **hub, **kwargs)
        kwargs.pop("state_dict", None)
        config = kwargs.pop("config", None) or source
        whole = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
        shards = SAFE_WEIGHTS_INDEX_NAME
        files = [whole] if whole else get_checkpoint_shard_files(source, cached_file(source, shards, **hub), **hub)[0]
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        if "classifier.weight" in weights:  # with the pooler that `write_berts_form` puts before it
            pooler = weights["bert.pooler.dense.weight"]
            if not torch.equal(pooler, pooler[0, 0] * torch.eye(len(pooler), dtype=pooler.dtype)):
                raise ValueError(f"{source} was trained on as BERT: load it without trust_remote_code, as BERT.")
            weights["classifier.weight"] = weights["classifier.weight"] * pooler[0, 0]
        loaded = super().from_pretrained(None, *args, config=config, state_dict=from_bert(weights), **hub, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(source)
        return loaded

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in transformers, which copies this file and what it imports; the pipeline, which nothing here imports, is added."""
        if kwargs.get("is_main_process", True):
            source = Path(__file__).with_name(PIPELINE_FILE)
            if not source.exists():  # loaded as remote code, which fetches only the modules it imports
                revision = getattr(self.config, "_commit_hash", None)
                source = Path(cached_file(self.name_or_path, PIPELINE_FILE, revision=revision))
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            if source.resolve() != Path(save_directory, PIPELINE_FILE).resolve():
                shutil.copyfile(source, Path(save_directory, PIPELINE_FILE))
        super().save_pretrained(save_directory, **kwargs)


class TinyBertModel(TinyBertPreTrainedModel):
    """Encoder whose `pooler_output` is the embedding of the text."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^classifier\."]

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__(config)
        self.embeddings = TinyBertEmbeddings(config)
        self.layers = nn.ModuleList(TinyBertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch of texts.

        Args:
            input_ids: (B, T) token ids, T <= `max_position_embeddings`.
            attention_mask: (B, T), 1 for a token and 0 for padding; None means no padding.
            token_type_ids: (B, T) segment ids; None means all 0.
            position_ids: (B, T) or (T,) positions; None means 0 .. T-1.
            inputs_embeds: (B, T, H) token embeddings, before scaling, in place of `input_ids`.
            output_hidden_states: also return the input of the first block and the output of every block.
            output_attentions: also return each block's attention weights, (B, A, T, T); needs eager attention.

        Returns: `last_hidden_state` (B, T, H) and `pooler_output` (B, H), the text embedding, not normalised.

        Raises:
            ValueError: if T is above the context length, if not exactly one of `input_ids` and `inputs_embeds` is
                given, or if attentions are asked of an implementation that has none to give.
        """
        config = self.config
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        num_tokens = inputs.shape[1]
        if num_tokens > config.max_position_embeddings:
            raise ValueError(
                f"The input has {num_tokens} tokens, the model at most {config.max_position_embeddings} positions "
                f"(max_position_embeddings). Truncate it: tokenizer(..., truncation=True)."
            )
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions needs attn_implementation='eager', this model runs {config._attn_implementation!r}. "
                "Load it with from_pretrained(..., attn_implementation='eager')."
            )

        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(config, hidden_states, attention_mask)
        angles = None
        if config.position_embedding_type == "rotary":
            if position_ids is None:
                position_ids = torch.arange(num_tokens, device=hidden_states.device)
            head_size = config.hidden_size // config.num_attention_heads
            angles = rotary_angles(position_ids.view(-1, num_tokens), head_size)
        all_hidden_states: tuple[Tensor, ...] = (hidden_states,)
        all_attentions: tuple[Tensor, ...] = ()
        for layer in self.layers:
            hidden_states, attentions = layer(hidden_states, mask, angles, **kwargs)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            if output_attentions:
                all_attentions += (attentions,)

        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self.pool(hidden_states, attention_mask),
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=all_attentions if output_attentions else None,
        )

    def pool(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, T, H) -> (B, H): the first token, or the mean over tokens."""
        if self.config.pooling == "cls":
            return hidden_states[:, 0].contiguous()
        return mean_over_tokens(hidden_states, attention_mask)


class TinyBertForSequenceClassification(TinyBertPreTrainedModel):
    """The encoder with a linear classifier on the text embedding, for single texts and pairs."""

    def __init__(self, config: TinyBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.tinybert = TinyBertModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify a batch of texts or pairs.

        Args:
            labels: (B,) class ids; (B,) or (B, labels) floats where `problem_type` is regression or multi-label.
            The other arguments are those of `TinyBertModel.forward`.

        Returns: `logits` (B, labels), and `loss` where labels are given.
        """
        outputs = self.tinybert(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


TinyBertModel.register_for_auto_class("AutoModel")
TinyBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
