"""The encoder for ONNX Runtime: export in fp32 and int8, and a stand-in for the PyTorch model on CPUs."""

import copy
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_tinybert import TinyBertConfig
from .errors import InputError, MissingFileError, import_extra
from .loading import loading
from .modeling_tinybert import TinyBertModel
from .pipeline_tinybert import encode

# Otherwise onnxruntime (1.32) reports to its makers; it must be set before the import, and a user's own choice stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
onnx = import_extra("onnx", "onnx", "ONNX")
import_extra("onnxscript", "onnx", "ONNX")  # torch's exporter is built on it
onnxruntime = import_extra("onnxruntime", "onnx", "ONNX")
quantization = import_extra("onnxruntime.quantization", "onnx", "ONNX")

# The names that sentence-transformers, optimum and transformers.js look for.
FP32_FILE = "onnx/model.onnx"
INT8_FILE = "onnx/model_quantized.onnx"
# What a cosine may lose. Exported arithmetic is the same but for the order of sums; 8 bits are not.
LOWEST_COSINE = {FP32_FILE: 0.999, INT8_FILE: 0.99}


class ExportedModel(nn.Module):
    """What the ONNX graph computes."""

    def __init__(self, model: TinyBertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        sentence_embedding = nn.functional.normalize(output.pooler_output, dim=-1)
        return output.last_hidden_state, output.pooler_output, sentence_embedding


def export_onnx(
    model: TinyBertModel, tokenizer: PreTrainedTokenizerBase, folder: Path, texts: Sequence[str]
) -> dict[str, float]:
    """Write `onnx/model.onnx` and, with weights of 8 bits, `onnx/model_quantized.onnx` into a model folder.

    Their inputs are `input_ids` and `attention_mask`, (B, T) int64; their outputs `last_hidden_state` (B, T, H),
    `pooler_output` (B, H) and `sentence_embedding` (B, H), which has rows of length 1.

    Returns: for each file, the lowest cosine over `texts` between its embedding and that of `model`, in evaluation mode.

    Raises: InputError: if that is below 0.999, with 8 bits 0.99.
    """
    (folder / "onnx").mkdir()
    exported = ExportedModel(copy.deepcopy(model)).eval()
    exported.model.set_attn_implementation("eager")  # the shortest graph
    sample = torch.zeros(2, 4, dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=model.config.max_position_embeddings)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        program = torch.onnx.export(
            exported,
            (sample, torch.ones_like(sample)),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "pooler_output", "sentence_embedding"],
            dynamic_shapes=(axes, axes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(folder / FP32_FILE)
    prepared = folder / "onnx" / "prepared.onnx"
    quantization.quant_pre_process(folder / FP32_FILE, prepared, skip_symbolic_shape=True)
    # Without VNNI, sums of two products of 8 bits overflow 16; weights of 7 bits, a scale for each column, do not.
    quantization.quantize_dynamic(
        prepared,
        folder / INT8_FILE,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=feed_forward_outputs(prepared, model.config) if model.config.norm_position == "post" else [],
    )
    prepared.unlink()

    expected = encode(model, tokenizer, texts)
    cosines = {}
    for file, lowest in LOWEST_COSINE.items():
        embeddings = encode(OnnxEncoder(folder, file), tokenizer, texts)
        cosines[file], text = min(zip((embeddings * expected).sum(dim=-1).tolist(), texts, strict=True))
        if not cosines[file] >= lowest:
            raise InputError(
                f"{file} has a cosine of {cosines[file]:.4f} to the PyTorch model on {text[:60]!r}, {lowest} is expected. "
                "The model cannot be published with ONNX; leave --onnx out."
            )
    return cosines


def feed_forward_outputs(path: Path, config: TinyBertConfig) -> list[str]:
    """The nodes that multiply by the second matrix of a feed-forward layer; in BERT they stay in fp32.

    What enters them has outliers (Bondarenko et al. 2021, arXiv:2109.12948), which leave 8 bits too little for the rest.
    """
    graph = onnx.load(path).graph
    shape = [config.intermediate_size, config.hidden_size]
    matrices = {tensor.name for tensor in graph.initializer if list(tensor.dims) == shape}
    return [node.name for node in graph.node if node.op_type == "MatMul" and matrices & set(node.input)]


class OnnxEncoder(nn.Module):
    """A folder's ONNX model in place of a `TinyBertModel`, for `encode` on a CPU: without gradients, embeddings only."""

    device = torch.device("cpu")

    def __init__(self, folder: str | Path, file: str = INT8_FILE) -> None:
        """Load `file`, to run with as many threads as PyTorch; MissingFileError if it was not built."""
        super().__init__()
        path = Path(folder, file)
        if not path.is_file():
            raise MissingFileError(f"{folder} has no {file}; build it with: tinybert publish --onnx.")
        with loading(folder):
            self.config = TinyBertConfig.from_pretrained(folder)
        self.config.rerank_depth = 0  # it gives no states of tokens
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        """(B, T) ids and mask of single texts -> `pooler_output` (B, H), as the model gives it."""
        feeds = {"input_ids": input_ids.long().numpy(), "attention_mask": attention_mask.long().numpy()}
        (pooled,) = self.session.run(["pooler_output"], feeds)
        return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(pooled))
