"""The encoder computes what its description says, and survives being saved, loaded and published.

python -m pytest tests/test_modeling_tinybert.py -q
"""

import json
import math
from pathlib import Path

import pytest
import torch
from fresh_process import run_stranger
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel, encode
from tinybert_hf.configuration_tinybert import AUTO_MAP

LENGTHS = (9, 4, 1)
CODE_FILES = {"configuration_tinybert.py", "modeling_tinybert.py", "pipeline_tinybert.py"}


def randomize(model: torch.nn.Module) -> None:
    """Move every weight off its initial value: norms off 1, biases off 0, attention off the uniform."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture
def model(config: TinyBertConfig) -> TinyBertModel:
    torch.manual_seed(0)
    model = TinyBertModel(config).eval()
    randomize(model)
    return model


@pytest.fixture
def batch(config: TinyBertConfig) -> dict[str, Tensor]:
    """Three texts of unlike length, padded; the last third of each is a second segment."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), config.pad_token_id)
    mask, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(4, config.vocab_size, (length,), generator=generator)
        mask[row, :length] = 1
        segments[row, length - length // 3 : length] = 1
    assert mask.min() == 0 and segments.max() == 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def with_attention(model: TinyBertModel, implementation: str) -> TinyBertModel:
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    return model


# ---- Configuration ----


def test_the_default_configuration_is_the_specification() -> None:
    specification = {
        "vocab_size": 30_000,
        "hidden_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "intermediate_size": 1600,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 350,
        "type_vocab_size": 2,
        "position_embedding_type": "rotary",
        "pooling": "mean",
        "model_type": "tinybert",
    }
    assert specification.items() <= TinyBertConfig().to_dict().items()


def test_an_impossible_configuration_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="hidden_size=30 is not a multiple of num_attention_heads=4"):
        TinyBertConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(ValueError, match="heads of an even size; hidden_size=9 over num_attention_heads=3 is 3"):
        TinyBertConfig(hidden_size=9, num_attention_heads=3, position_embedding_type="rotary")
    with pytest.raises(ValueError, match="'alibi' is unknown; choose one of sinusoidal, rotary, learned"):
        TinyBertConfig(position_embedding_type="alibi")
    with pytest.raises(ValueError, match="norm_position='both' is unknown; choose one of pre, post"):
        TinyBertConfig(norm_position="both")
    with pytest.raises(ValueError, match="pooling='max' is unknown; choose one of cls, mean"):
        TinyBertConfig(pooling="max")


def test_a_configuration_survives_its_json_file(config: TinyBertConfig, tmp_path: Path) -> None:
    config.pooling = "mean"
    config.save_pretrained(tmp_path)
    assert TinyBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
        "transformers_version": json.loads((tmp_path / "config.json").read_text())["transformers_version"]
    }


# ---- Arithmetic ----


def plain_forward(
    weights: dict[str, Tensor], heads: int, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> Tensor:
    """The encoder in plain tensor operations: (B, T) ids -> (B, T, H)."""
    batch_size, num_tokens = input_ids.shape
    embedding = weights["embeddings.word_embeddings.weight"]
    hidden = embedding.shape[1]
    positions = torch.empty(num_tokens, hidden)
    for position in range(num_tokens):
        for i in range(0, hidden, 2):
            angle = position / 10_000 ** (i / hidden)
            positions[position, i], positions[position, i + 1] = math.sin(angle), math.cos(angle)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / variance.sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = embedding[input_ids] * hidden**0.5
    x = x + weights["embeddings.token_type_embeddings.weight"][token_type_ids] + positions
    layers = sum(name.endswith("attention_norm.weight") for name in weights)
    for layer in (f"layers.{n}" for n in range(layers)):
        qkv = linear(norm(x, f"{layer}.attention_norm"), f"{layer}.attention.qkv")
        q, k, v = (part.view(batch_size, num_tokens, heads, -1) for part in qkv.split(hidden, dim=-1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (hidden / heads) ** 0.5
        scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, -torch.inf)
        context = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(x.shape)
        x = x + linear(context, f"{layer}.attention.output")
        up = linear(norm(x, f"{layer}.mlp_norm"), f"{layer}.mlp.up")
        x = x + linear(up.clamp(min=0), f"{layer}.mlp.down")
    return x


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_forward_pass_equals_the_arithmetic_written_out(
    model: TinyBertModel, batch: dict[str, Tensor], implementation: str
) -> None:
    expected = plain_forward(model.state_dict(), model.config.num_attention_heads, **batch)
    output = with_attention(model, implementation)(**batch)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


def test_sdpa_is_the_default_and_equals_eager(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    assert model.config._attn_implementation == "sdpa"
    sdpa = model(**batch).last_hidden_state
    eager = with_attention(model, "eager")(**batch).last_hidden_state
    torch.testing.assert_close(sdpa, eager, rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_the_embedding(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    padded = model(**batch)
    for row, length in enumerate(LENGTHS):
        alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
        torch.testing.assert_close(padded.pooler_output[row], alone.pooler_output[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            padded.last_hidden_state[row, :length], alone.last_hidden_state[0], rtol=1e-5, atol=1e-5
        )


def test_the_order_of_the_batch_does_not_change_an_embedding(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    order = torch.tensor([2, 0, 1])
    shuffled = model(**{name: tensor[order] for name, tensor in batch.items()}).pooler_output
    torch.testing.assert_close(shuffled, model(**batch).pooler_output[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_row_of_only_padding_is_finite(
    model: TinyBertModel, batch: dict[str, Tensor], pooling: str, implementation: str
) -> None:
    model.config.pooling = pooling
    before = with_attention(model, implementation)(**batch).pooler_output
    batch["attention_mask"][2] = 0
    model.train()  # gradients too: NaN hides where only the forward pass is masked
    output = model(**batch)
    output.pooler_output.sum().backward()
    assert output.last_hidden_state.isfinite().all() and output.pooler_output.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model.eval()(**batch).pooler_output[:2], before[:2], rtol=1e-5, atol=1e-5)


def test_mean_pooling_averages_the_tokens_that_are_not_padding(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    model.config.pooling = "mean"
    output = model(**batch)
    for row, length in enumerate(LENGTHS):
        mean = output.last_hidden_state[row, :length].mean(dim=0)
        torch.testing.assert_close(output.pooler_output[row], mean, rtol=1e-5, atol=1e-5)
    unpadded = model(batch["input_ids"][:1]).pooler_output
    all_ones = model(batch["input_ids"][:1], attention_mask=torch.ones(1, LENGTHS[0])).pooler_output
    torch.testing.assert_close(unpadded, all_ones, rtol=1e-5, atol=1e-5)


def test_dropout_is_active_in_training_only(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    assert torch.equal(model(**batch).pooler_output, model(**batch).pooler_output)
    model.train()
    assert not torch.equal(model(**batch).pooler_output, model(**batch).pooler_output)


def test_rotary_positions_see_distances_only(config: TinyBertConfig, batch: dict[str, Tensor]) -> None:
    config.position_embedding_type = "rotary"
    model = TinyBertModel(config).eval()
    randomize(model)
    assert "embeddings.positions" not in model.state_dict()
    for implementation in ("eager", "sdpa"):
        with_attention(model, implementation)
        num_tokens = batch["input_ids"].shape[1]
        expected = model(**batch).last_hidden_state
        positions = torch.arange(num_tokens)
        moved = model(**batch, position_ids=positions + 7).last_hidden_state
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
        stretched = model(**batch, position_ids=positions * 2).last_hidden_state
        assert (stretched - expected).abs().max() > 1e-2
        model.config.pooling = "cls"
        pooled = model(**batch, position_ids=positions + 7).pooler_output
        torch.testing.assert_close(pooled, expected[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position_embedding_type", ["sinusoidal", "rotary", "learned"])
def test_new_weights_have_the_configured_spread(config: TinyBertConfig, position_embedding_type: str) -> None:
    config.position_embedding_type = position_embedding_type
    config.initializer_range, config.embedding_initializer_range = 0.5, 0.25
    config.residual_initializer_range = 0.125
    model = TinyBertModel(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() > 1000:
            residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            spread = 0.25 if "word_embeddings" in name else 0.125 if residual else 0.5
            assert parameter.std().item() == pytest.approx(spread, rel=0.1), name


# ---- Inputs and outputs ----


def test_embedded_inputs_equal_token_ids(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    ids = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(ids)
    from_embeddings = model(inputs_embeds=embedded, **batch).pooler_output
    assert torch.equal(from_embeddings, model(ids, **batch).pooler_output)


def test_segments_default_to_the_first_and_positions_to_the_order(
    model: TinyBertModel, batch: dict[str, Tensor]
) -> None:
    ids = batch["input_ids"][:1]
    default = model(ids).pooler_output
    assert torch.equal(default, model(ids, token_type_ids=torch.zeros_like(ids)).pooler_output)
    positions = torch.arange(ids.shape[1])
    for position_ids in (positions, positions[None]):
        assert torch.equal(default, model(ids, position_ids=position_ids).pooler_output)
    assert not torch.allclose(default, model(ids, position_ids=positions + 1).pooler_output, atol=1e-3)


def test_more_positions_than_the_context_are_an_error_with_both_numbers(model: TinyBertModel) -> None:
    model(torch.full((1, 32), 5))
    with pytest.raises(ValueError, match=r"33 tokens, the model at most 32 positions"):
        model(torch.full((1, 33), 5))


def test_ids_and_embeddings_exclude_each_other(model: TinyBertModel) -> None:
    ids = torch.tensor([[1, 5, 2]])
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": torch.zeros(1, 3, 32)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_hidden_states_are_the_embeddings_and_each_layers_output(
    model: TinyBertModel, batch: dict[str, Tensor]
) -> None:
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    embedded = model.embeddings(batch["input_ids"], batch["token_type_ids"], None, None)
    assert torch.equal(output.hidden_states[0], embedded)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert not torch.equal(output.hidden_states[1], output.hidden_states[2])
    assert model(**batch).hidden_states is None


def test_eager_attention_weights_sum_to_one_over_the_tokens(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    attentions = with_attention(model, "eager")(**batch, output_attentions=True).attentions
    assert [a.shape for a in attentions] == [(3, 4, 9, 9)] * 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 9))
        assert (weights[1, :, :, LENGTHS[1] :] == 0).all()
        assert weights.std() > 0.1  # not merely uniform


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_was_never_tried_is_refused(config: TinyBertConfig, implementation: str) -> None:
    """Nobody has measured it with this model; transformers knows by what the class claims."""
    with pytest.raises(ValueError, match="TinyBertModel does not support"):
        TinyBertModel._from_config(config, attn_implementation=implementation)


def test_attentions_asked_of_sdpa_are_an_error(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="attn_implementation='eager', this model runs 'sdpa'"):
        model(**batch, output_attentions=True)


def test_a_tuple_has_the_outputs_in_order(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    output = model(**batch)
    last_hidden_state, pooler_output = model(**batch, return_dict=False)
    assert torch.equal(last_hidden_state, output.last_hidden_state)
    assert torch.equal(pooler_output, output.pooler_output)


# ---- Training and precision ----


# 5.23 renamed it; the older versions that we support know the old name only.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(model: TinyBertModel, batch: dict[str, Tensor]) -> None:
    model.train()

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(5)
        model.zero_grad()
        model(**batch).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    forward_passes = 0

    def count(*_: object) -> None:
        nonlocal forward_passes
        forward_passes += 1

    model.layers[0].mlp.register_forward_hook(count)
    plain = gradients()
    assert forward_passes == 1
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert forward_passes == 3  # the layer ran again in the backward pass
    model.eval()
    assert not torch.equal(gradients()["layers.0.mlp.up.weight"], plain["layers.0.mlp.up.weight"])  # dropout
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_is_finite_and_near_fp32(
    model: TinyBertModel, batch: dict[str, Tensor], dtype: torch.dtype, tolerance: float, implementation: str
) -> None:
    full = with_attention(model, implementation)(**batch).pooler_output
    half = model.to(dtype)(**batch).pooler_output
    assert half.dtype == dtype and half.isfinite().all()
    assert (half.float() - full).norm() / full.norm() < tolerance


# ---- Classification ----


@pytest.fixture
def classifier(config: TinyBertConfig) -> TinyBertForSequenceClassification:
    torch.manual_seed(0)
    config.num_labels = 3
    classifier = TinyBertForSequenceClassification(config).eval()
    randomize(classifier)
    return classifier


def test_the_classifier_reads_pairs_and_its_loss_is_cross_entropy(
    classifier: TinyBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase
) -> None:
    pairs = tokenizer(["edit text", "play music"], ["a good movie", "mail"], padding=True, return_tensors="pt")
    assert pairs["token_type_ids"].max() == 1
    output = classifier(**pairs, labels=torch.tensor([2, 0]))
    embeddings = classifier.tinybert(**pairs).pooler_output
    logits = embeddings @ classifier.classifier.weight.T + classifier.classifier.bias
    torch.testing.assert_close(output.logits, logits)
    by_hand = -(logits[0].exp() / logits[0].exp().sum())[2].log() - (logits[1].softmax(0))[0].log()
    torch.testing.assert_close(output.loss, by_hand / 2)
    assert classifier(**pairs).loss is None
    swapped = tokenizer(["a good movie", "mail"], ["edit text", "play music"], padding=True, return_tensors="pt")
    assert not torch.allclose(classifier(**swapped).logits, output.logits, atol=1e-3)


def test_floats_as_labels_follow_the_problem_type(
    classifier: TinyBertForSequenceClassification, batch: dict[str, Tensor]
) -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    logits = classifier(**batch).logits
    classifier.config.problem_type = "regression"
    torch.testing.assert_close(classifier(**batch, labels=targets).loss, (logits - targets).square().mean())
    classifier.config.problem_type = "multi_label_classification"
    p = logits.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(classifier(**batch, labels=targets).loss, by_hand, rtol=1e-4, atol=1e-4)


def test_the_classifier_passes_on_what_the_encoder_can_do(
    classifier: TinyBertForSequenceClassification, batch: dict[str, Tensor]
) -> None:
    output = classifier(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    (logits,) = classifier(**batch, return_dict=False)
    assert torch.equal(logits, output.logits)
    embedded = classifier.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(classifier(inputs_embeds=embedded, **batch).logits, output.logits)


# ---- Saving and loading ----


def test_a_saved_model_is_the_same_model(model: TinyBertModel, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model.embeddings.positions.add_(0.25)  # a converted checkpoint's own table
    model.save_pretrained(tmp_path)
    loaded = TinyBertModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert "embeddings.positions" in loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert not loaded.training
    assert torch.equal(loaded(**batch).pooler_output, model(**batch).pooler_output)


def test_a_checkpoint_without_positions_gets_the_sinusoidal_ones(
    model: TinyBertModel, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = model.state_dict()
    del weights["embeddings.positions"]  # from_pretrained builds on the meta device: what is missing is garbage
    loaded = TinyBertModel.from_pretrained(None, config=model.config, state_dict=weights)
    assert torch.equal(loaded.embeddings.positions, model.embeddings.positions)
    assert torch.equal(loaded(**batch).pooler_output, model(**batch).pooler_output)


def test_a_model_loads_into_bf16(model: TinyBertModel, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = TinyBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    full, half = model(**batch).pooler_output, loaded(**batch).pooler_output.float()
    assert (half - full).norm() / full.norm() < 0.05


def test_encoder_and_classifier_load_each_others_folders(
    classifier: TinyBertForSequenceClassification, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path / "classifier")
    encoder, report = TinyBertModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(report.values())
    expected = classifier.tinybert(**batch).pooler_output
    assert torch.equal(encoder(**batch).pooler_output, expected)

    encoder.save_pretrained(tmp_path / "encoder")
    loaded, report = TinyBertForSequenceClassification.from_pretrained(
        tmp_path / "encoder", num_labels=2, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert torch.equal(loaded.tinybert(**batch).pooler_output, expected)
    assert loaded.classifier.weight.shape == (2, 32) and loaded.classifier.weight.std() < 0.05


def test_no_two_tensors_share_memory(classifier: TinyBertForSequenceClassification) -> None:
    tensors = classifier.state_dict(keep_vars=True)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == len(tensors)
    assert all(tensor.is_contiguous() for tensor in tensors.values())


# ---- Published: a stranger's process, without the package and without a network ----


@pytest.mark.slow
def test_a_stranger_loads_and_saves_the_folders_as_remote_code(
    model_folder: Path, classifier_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = ["play music", "a fast compiler for small machines", "edit a good text"]
    expected = encode(TinyBertModel.from_pretrained(model_folder), tokenizer, texts)
    classifier = TinyBertForSequenceClassification.from_pretrained(classifier_folder)
    expected_logits = classifier(**tokenizer(texts, padding=True, return_tensors="pt")).logits

    run_stranger(
        f"""
        import shutil, torch
        from pathlib import Path
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

        def embed(model, tokenizer):
            batch = tokenizer({texts!r}, padding=True, return_tensors="pt")
            with torch.inference_mode():
                pooled = model(**batch).pooler_output.float()
            return torch.nn.functional.normalize(pooled, dim=-1)

        folder, classifier_folder = {str(model_folder)!r}, {str(classifier_folder)!r}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        classifier = AutoModelForSequenceClassification.from_pretrained(classifier_folder, trust_remote_code=True)
        search = pipeline("semantic-search", model=folder, trust_remote_code=True)
        features = pipeline("feature-extraction", model=folder, trust_remote_code=True)
        classify = pipeline("text-classification", model=classifier_folder, trust_remote_code=True)
        assert all(type(m).__module__.startswith("transformers_modules.") for m in (model, classifier, search.model))
        with torch.inference_mode():
            logits = classifier(**tokenizer({texts!r}, padding=True, return_tensors="pt")).logits
        result = {{
            "embeddings": embed(model, tokenizer),
            "searched": search.encode({texts!r}),
            "first_tokens": torch.stack([torch.tensor(f[0][0]) for f in features({texts!r})]),
            "logits": logits,
            "labels": classify({texts!r}),
            "positions": model.embeddings.positions,
            "ranking": search({texts[0]!r}, {texts!r}, top_k=1),
        }}

        model.save_pretrained("again")
        tokenizer.save_pretrained("again")
        classifier.save_pretrained("classifier-again")
        model.half().save_pretrained("half")
        tokenizer.save_pretrained("half")
        shutil.rmtree(folder)  # the new folders must not lean on the old ones
        shutil.rmtree(classifier_folder)
        for name in ("again", "half"):
            loaded = AutoModel.from_pretrained(name, trust_remote_code=True)
            result[name] = embed(loaded, AutoTokenizer.from_pretrained(name, trust_remote_code=False))
            result[f"{{name}} dtype"] = {{tensor.dtype for tensor in loaded.state_dict().values()}}
            loaded.save_pretrained(f"{{name}}-twice")
        searched = pipeline("semantic-search", model="again", trust_remote_code=True)({texts[0]!r}, {texts!r}, top_k=1)
        assert searched == result["ranking"], searched
        again = AutoModelForSequenceClassification.from_pretrained("classifier-again", trust_remote_code=True)
        with torch.inference_mode():
            batch = tokenizer({texts!r}, padding=True, return_tensors="pt")
            assert torch.equal(again(**batch).logits, logits)
        torch.save(result, "result.pt")
        """,
        home=tmp_path,
    )

    result = torch.load(tmp_path / "result.pt", weights_only=False)
    for name in ("embeddings", "searched", "again"):
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result["half"], expected, rtol=0, atol=5e-3)
    assert (result["again dtype"], result["half dtype"]) == ({torch.float32}, {torch.float16})
    first_tokens = torch.nn.functional.normalize(result["first_tokens"], dim=-1)
    torch.testing.assert_close(first_tokens, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result["logits"], expected_logits, rtol=0, atol=1e-6)
    assert [found["label"] for found in result["labels"]] == [
        ("negative", "positive")[row.argmax()] for row in expected_logits
    ]
    assert result["positions"][0, :2].tolist() == [0.0, 1.0]
    assert result["positions"][1, 0].item() == pytest.approx(math.sin(1))
    assert [(found["index"], found["text"]) for found in result["ranking"]] == [(0, texts[0])]

    for name in ("again", "half", "classifier-again", "again-twice", "half-twice"):
        folder = tmp_path / name
        assert {path.name for path in folder.glob("*.py")} == CODE_FILES
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"] == AUTO_MAP  # plain file.Class, no path and no repository in front
        assert config["custom_pipelines"]["semantic-search"]["impl"] == "pipeline_tinybert.SemanticSearchPipeline"
    here = encode(TinyBertModel.from_pretrained(tmp_path / "again-twice"), tokenizer, texts)
    assert torch.equal(here, expected)
