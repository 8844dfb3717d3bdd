"""Load a model from the Hub and compare its outputs with those of the local folder.

`verify.load_back` runs this file by its path, in a process of its own that cannot import tinybert_hf. The code then
comes with the model, as for a stranger. So this file imports nothing of the package.
"""

import json
import sys

import torch
import transformers
from torch import Tensor

LARGEST_DIFFERENCE = 1e-6  # of an output


def outputs(source: str, revision: str, auto_class: str, text: str) -> tuple[dict[str, Tensor], Tensor]:
    """The tokenized text, and the model's logits or embedding of it, (1, L or H) fp64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    auto_model = getattr(transformers, auto_class)
    model = auto_model.from_pretrained(source, revision=revision, trust_remote_code=True).eval()
    batch = tokenizer(text, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model(**batch)
    return batch, (answer.logits if "logits" in answer else answer.pooler_output).double()


def onnx_embedding(repo_id: str, revision: str, file: str, batch: dict[str, Tensor]) -> Tensor:
    """(1, H) fp64, by an ONNX model on the Hub."""
    import onnxruntime

    path = transformers.utils.cached_file(repo_id, file, revision=revision)
    feeds = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    (embedding,) = onnxruntime.InferenceSession(path).run(["sentence_embedding"], feeds)
    return torch.from_numpy(embedding).double()


def main(repo_id: str, revision: str, folder: str, auto_class: str, text: str, onnx_files: str) -> None:
    """Exit with a message where the model on the Hub, loaded by `auto_class`, does not do with `text` as the folder's.

    `onnx_files` is JSON: ONNX file on the Hub -> lowest cosine that it may have to the PyTorch model.
    """
    _, expected = outputs(folder, "main", auto_class, text)
    batch, found = outputs(repo_id, revision, auto_class, text)
    difference = (found - expected).abs().max().item()
    if not difference <= LARGEST_DIFFERENCE:
        sys.exit(f"an output differs by {difference:g} from that of the local folder")
    for file, lowest in json.loads(onnx_files).items():
        embedding = onnx_embedding(repo_id, revision, file, batch)
        cosine = torch.cosine_similarity(embedding, expected).item()
        if not cosine >= lowest:
            sys.exit(f"{file} has a cosine of {cosine:.4f} to the PyTorch model, {lowest} is expected")


if __name__ == "__main__":
    sys.modules["tinybert_hf"] = None  # type: ignore[assignment] # an import of it fails
    main(*sys.argv[1:])
