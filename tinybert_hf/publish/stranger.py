"""Load a model from the Hub and compare its outputs with those of the local folder.

`push.load_back` runs this file by its path, in a process of its own that cannot import tinybert_hf. The code then
comes with the model, as for a stranger. So this file imports nothing of the package.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor


def outputs(source: str, revision: str, auto_model: Any, text: str, onnx_files: Sequence[str]) -> dict[str, Tensor]:
    """The logits or the embedding of a text, (1, L or H), by the model and by each of its ONNX models."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    model = auto_model.from_pretrained(source, revision=revision, trust_remote_code=True).eval()
    batch = tokenizer(text, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model(**batch)
    found = {"the model": answer.logits if "logits" in answer else answer.pooler_output}
    for file in onnx_files:
        import onnxruntime

        session = onnxruntime.InferenceSession(transformers.utils.cached_file(source, file, revision=revision))
        feeds = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
        found[file] = torch.from_numpy(session.run(["sentence_embedding"], feeds)[0])
    return found


def main(repo_id: str, revision: str, folder: str) -> None:
    """Exit with a message where the model on the Hub does not do with the folder's first example as the folder's model."""
    limit = dict.fromkeys(("connect", "read", "write", "pool"), 8)  # seconds; see hub.py
    huggingface_hub.get_session().event_hooks["request"].append(lambda asked: asked.extensions.update(timeout=limit))
    (text, *_), *_ = map(dict.values, json.loads(Path(folder, "examples.json").read_text(encoding="utf-8")))
    (architecture,) = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["architectures"]
    classifies = architecture.endswith("ForSequenceClassification")
    auto_model = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModel
    onnx_files = [path.relative_to(folder).as_posix() for path in Path(folder).glob("onnx/*.onnx")]
    expected = outputs(folder, "main", auto_model, text, onnx_files)
    for name, output in outputs(repo_id, revision, auto_model, text, onnx_files).items():
        difference = (output - expected[name]).abs().max().item()
        if not difference <= 1e-6:
            sys.exit(f"an output of {name} differs by {difference:g} from that of the local folder")


if __name__ == "__main__":
    sys.modules["tinybert_hf"] = None  # type: ignore[assignment] # an import of it fails
    main(*sys.argv[1:])
