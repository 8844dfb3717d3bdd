"""Encoding with the package installed: the same vectors, with the kernels, in the hardware's precision, by processes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from conftest import TEXTS
from fresh_process import run_stranger
from torch import Tensor
from transformers import BertModel, MPNetConfig, PreTrainedTokenizerBase
from two_processes import run_two_processes

from tinybert_hf import TinyBertConfig, TinyBertModel, convert_bert, encode, encode_stream, load_search_pipeline
from tinybert_hf import encoding as module
from tinybert_hf import pipeline_tinybert as plain
from tinybert_hf.encoding import KernelEncoder, encode_by_processes, fast_dtype
from tinybert_hf.errors import InputError, MissingFileError, UnreadableError
from tinybert_hf.kernels import LEAST_TOKENS_TO_PACK, can_pack

QUERY = "play some music"
MANY = [f"{text} {i}" for i in range(64) for text in TEXTS]


@pytest.fixture
def model(config: TinyBertConfig) -> TinyBertModel:
    """Weights far from their small initial values, so that the cosines differ."""
    torch.manual_seed(0)
    config.initializer_range = 0.5
    return TinyBertModel(config).eval()


@pytest.fixture
def one_thread() -> Any:
    """A batch has 512 tokens for each thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def products(profile: torch.profiler.profile) -> set[str]:
    return {event.key for event in profile.key_averages()} & {"mkldnn::_linear_pointwise", "aten::addmm"}


# ---- The kernels ----


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_texts_does_not_change_an_embedding(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert sum(map(len, tokenizer(MANY)["input_ids"])) > LEAST_TOKENS_TO_PACK + 1024, (
        "for fewer, weights are not packed"
    )
    with torch.profiler.profile() as profile:
        rows = encode(model, tokenizer, MANY)
    torch.testing.assert_close(rows[-8:], encode(model, tokenizer, MANY[-8:]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows, plain.encode(model, tokenizer, MANY), rtol=1e-4, atol=1e-5)
    if not can_pack(torch.float32):
        pytest.skip("this processor or this torch has no packed weights: the rest could not be seen")
    assert products(profile) == {"mkldnn::_linear_pointwise", "aten::addmm"}, "the first ones are not packed"


@pytest.mark.usefixtures("one_thread")
def test_the_file_that_travels_has_no_kernels(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.profiler.profile() as profile:
        plain.encode(model, tokenizer, MANY)
    assert products(profile) == {"aten::addmm"}


def test_the_packages_names_are_those_with_kernels() -> None:
    assert encode is module.encode
    assert encode_stream is module.encode_stream
    assert load_search_pipeline is module.load_search_pipeline


@pytest.mark.parametrize("options", [{}, {"truncate_dim": 8}, {"normalize": False, "batch_tokens": 30}])
def test_encode_and_its_stream_are_the_plain_ones(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    expected = plain.encode(model, tokenizer, TEXTS, **options)
    torch.testing.assert_close(encode(model, tokenizer, TEXTS, **options), expected, rtol=1e-4, atol=1e-5)
    windows = list(encode_stream(model, tokenizer, iter(TEXTS), window=3, **options))
    assert [len(rows) for rows in windows] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(windows), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(model, tokenizer, TEXTS, 30), encode(model, tokenizer, TEXTS, batch_tokens=30))


def test_a_wrong_call_is_refused_as_by_the_plain_one(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TypeError, match="texts must be a list of strings, got str"):
        encode(model, tokenizer, "music")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="truncate_dim must be from 1 to 32"):
        list(encode_stream(model, tokenizer, TEXTS, truncate_dim=33))


def test_the_mode_of_the_model_is_restored(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = encode(model, tokenizer, TEXTS)
    assert not model.training
    model.train()
    assert torch.equal(encode(model, tokenizer, TEXTS), expected), "without dropout"
    assert model.training


def test_weights_that_changed_between_two_calls_count(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """As in a notebook that encodes, trains on, and encodes again."""
    before = encode(model, tokenizer, MANY)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    after = encode(model, tokenizer, MANY)
    torch.testing.assert_close(after, plain.encode(model, tokenizer, MANY), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize(("num_hidden_layers", "pooling", "passes"), [(0, "mean", 0), (1, "mean", 1), (0, "cls", 1)])
def test_words_alone_are_embedded_without_the_model(
    config: TinyBertConfig, tokenizer: PreTrainedTokenizerBase, num_hidden_layers: int, pooling: str, passes: int
) -> None:
    config.num_hidden_layers, config.pooling, config.position_embedding_type = num_hidden_layers, pooling, "rotary"
    torch.manual_seed(0)
    model = TinyBertModel(config).eval()
    expected = plain.encode(model, tokenizer, TEXTS)
    calls: list[None] = []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    torch.testing.assert_close(encode(model, tokenizer, TEXTS), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == passes


def test_what_is_no_model_of_ours_is_run_as_it_is(model: TinyBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """As an `OnnxEncoder`."""

    class StandIn:
        config, device, training = model.config, torch.device("cpu"), False

        def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return SimpleNamespace(pooler_output=torch.ones(len(input_ids), 32))

        def eval(self) -> None: ...

        def train(self, mode: bool = True) -> None: ...

    rows = encode(StandIn(), tokenizer, TEXTS, normalize=False)
    assert torch.equal(rows, torch.ones(8, 32))


def test_the_encoder_with_kernels_gives_the_pooled_output(model: TinyBertModel) -> None:
    batch = plain.pad_batch([[1, 5, 6, 2], [1, 7, 2]], pad_token_id=3)
    encoder = KernelEncoder(model)
    torch.testing.assert_close(encoder(**batch).pooler_output, model(**batch).pooler_output)
    assert (encoder.config, encoder.device, encoder.training) == (model.config, model.device, False)
    encoder.train()
    assert model.training and encoder.training
    encoder.eval()
    assert not model.training


# ---- A model by its name ----


def test_the_packages_search_is_the_folders(model: TinyBertModel, tokenizer: Any, model_folder: Path) -> None:
    expected = plain.SemanticSearchPipeline(model=model, tokenizer=tokenizer)(TEXTS[:3], TEXTS)
    search = load_search_pipeline(model_folder, dtype=torch.float32)
    assert search(TEXTS[:3], TEXTS) == expected
    assert isinstance(search, plain.SemanticSearchPipeline)
    assert isinstance(search.model, TinyBertModel), "the package's own code"


@pytest.mark.usefixtures("one_thread")
def test_the_packages_search_encodes_with_kernels(model_folder: Path) -> None:
    search = load_search_pipeline(model_folder, dtype=torch.float32)
    if not can_pack(torch.float32):
        pytest.skip("this processor or this torch has no packed weights")
    for encode_many in (search.encode, lambda texts: search(QUERY, texts)):
        with torch.profiler.profile() as profile:
            encode_many(MANY)
        assert "mkldnn::_linear_pointwise" in products(profile)


def test_a_search_that_was_loaded_cuts_where_it_is_asked_to(model_folder: Path) -> None:
    assert load_search_pipeline(model_folder).encode(["music"], truncate_dim=8).shape == (1, 8)


@pytest.mark.parametrize("load", [load_search_pipeline, convert_bert.load_encoder])
@pytest.mark.parametrize("name", ["no-such-model", "sentiment"])
def test_a_name_that_can_be_no_model_is_refused_at_once(
    name: str, load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert_bert, "load_config", None)  # nobody is asked
    with pytest.raises(MissingFileError, match=f"There is no model '{name}': no such file or folder here"):
        load(name)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"There is no model '.*nowhere': no such file or folder here"):
        load_search_pipeline(tmp_path / "nowhere")


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    MPNetConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UnreadableError, match="from this folder: it is a mpnet model; what works: tinybert, bert, "):
        load_search_pipeline(tmp_path / "other")


def test_a_bert_is_searched_with_as_it_is(bert: BertModel, bert_folder: Path) -> None:
    search = load_search_pipeline(bert_folder, dtype=torch.float32)
    assert isinstance(search.model, TinyBertModel) and search.model.config.norm_position == "post"
    batch = search.tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        states = bert(**batch).last_hidden_state
    expected = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    torch.testing.assert_close(search.encode(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert search.tokenizer.model_max_length == 32, "the tokenizer's own"
    (bert_folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (bert_folder / "1_Pooling").mkdir()
    (bert_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(InputError, match=r"bert pools by max"):
        load_search_pipeline(bert_folder)


# ---- Precision ----


@pytest.mark.parametrize(
    "capabilities, expected",
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_the_weights_are_bf16_where_the_processor_has_it(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: dict[str, bool],
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(module, "process_state", lambda: SimpleNamespace(device=torch.device("cpu")))
    with caplog.at_level("INFO", logger="tinybert_hf.encoding"):
        search = load_search_pipeline(model_folder)
    assert search.model.dtype == expected
    assert f"cpu in {expected}" in caplog.text
    assert search(QUERY, [*TEXTS, QUERY], top_k=1)[0]["text"] == QUERY
    assert load_search_pipeline(model_folder, dtype=torch.float64).model.dtype == torch.float64


def test_a_torch_that_cannot_tell_and_another_device_take_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_dtype(torch.device("cpu")) == torch.float32
    assert fast_dtype(torch.device("meta")) == torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_that_emulates_bf16_takes_fp32(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert fast_dtype(torch.device("cuda")) == expected


# ---- Two processes ----


def worker(rank: int, folder: str) -> None:
    search = load_search_pipeline(Path(folder, "model"), dtype=torch.float32)
    assert PartialState().num_processes == 2, "this test would be vacuous"
    rows = [encode_by_processes(search.model, search.tokenizer, TEXTS[:number]) for number in (5, 1, 0)]
    torch.save(rows, f"{folder}/{rank}.pt")
    PartialState().destroy_process_group()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_process_that_is_forked_after_a_search_does_not_hang(two_threads: None, model_folder: Path) -> None:
    search, matrix = load_search_pipeline(model_folder), torch.ones(512, 512)
    expected = search(TEXTS[0], TEXTS), matrix @ matrix
    if not (child := os.fork()):
        signal.alarm(60)
        same = search(TEXTS[0], TEXTS) == expected[0] and torch.equal(matrix @ matrix, expected[1])
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_two_processes_both_return_the_rows_of_one(model_folder: Path, tmp_path: Path) -> None:
    search = load_search_pipeline(model_folder, dtype=torch.float32)
    for processs_rows in run_two_processes(worker, tmp_path):
        for number, rows in zip((5, 1, 0), processs_rows, strict=True):
            torch.testing.assert_close(rows, search.encode(TEXTS[:number]), rtol=1e-5, atol=1e-6)


# ---- Memory ----


@pytest.mark.slow
def test_what_onednn_keeps_for_each_length_has_a_limit(tmp_path: Path) -> None:
    """It tells of every primitive that it makes: of 40 lengths, the first one's is gone when it comes again."""
    code = """
        import tinybert_hf.encoding, torch

        for length in [*range(1, 41), 1, 1]:
            torch.nn.functional.gelu(torch.ones(length, 64))
    """
    printed = run_stranger(code, tmp_path, os.environ | {"ONEDNN_VERBOSE": "profile"}, without_package=False)
    made = [line for line in printed.splitlines() if ",create:cache_miss," in line]
    found = [line for line in printed.splitlines() if ",create:cache_hit," in line]
    assert (len(made), len(found)) == (41, 1)
