"""Search from the command line; the search pipeline with this package's own code, and encoding by several processes.

    python -m tinybert_hf.search --model FOLDER_OR_ID --query "undo a commit" --chunks passages.txt --top_k 3

A chunk is a line of the file (blank lines are skipped); `-` reads standard input. `--json` prints one JSON list.
"""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from .arguments import errors_as_messages
from .configuration_tinybert import TinyBertConfig
from .modeling_tinybert import TinyBertModel
from .pipeline_tinybert import SemanticSearchPipeline, encode

logger = logging.getLogger(__name__)

FUSED = 100  # best of each ranking that a fusion sees
BM25_WEIGHT, DENSE_WEIGHT = 0.3, 0.7  # of the scores in a fusion, measured (EXPERIMENTS.md)


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started, and its device."""
    # accelerate takes several processes without an accelerator for single ones unless it is told.
    return PartialState(cpu=not torch.accelerator.is_available())


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, fp32 where it would be emulated or nobody can tell."""
    native = False
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in a torch before 2026
        instructions = ("amx_bf16", "avx512_bf16", "bf16")  # the last on ARM
        native = any(torch.cpu.get_capabilities().get(name) for name in instructions)
    return torch.bfloat16 if native else torch.float32


def fuse_scores(bm25: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """One query's results by words and by meaning as one ranking, best first: document id -> score of 0 to 1.

    The weighted sum of both scores, each scaled to 0 .. 1 over what it found (a convex combination, Bruch et al. 2023,
    arXiv:2210.11934); a document that one of them did not find has 0 of it. Better than reciprocal ranks and than equal
    weights (EXPERIMENTS.md).

    >>> fuse_scores({"a": 9.0, "b": 3.0}, {"b": 0.5, "c": 0.1})
    {'b': 0.7, 'a': 0.3, 'c': 0.0}
    """
    scores: dict[str, float] = defaultdict(float)
    for found, weight in ((bm25, BM25_WEIGHT), (dense, DENSE_WEIGHT)):
        low, high = min(found.values(), default=0.0), max(found.values(), default=0.0)
        for document_id, score in found.items():
            scores[document_id] += weight * ((score - low) / (high - low) if high > low else 1.0)
    return dict(sorted(scores.items(), key=lambda item: item[1], reverse=True))


def load_search_pipeline(
    model: str | Path, revision: str | None = None, dtype: torch.dtype | None = None
) -> SemanticSearchPipeline:
    """`pipeline("semantic-search", model=...)` with the installed package's code instead of the model folder's.

    Args:
        model: a model folder or a Hub id.
        revision: a branch, tag or commit of the Hub repository.
        dtype: of the weights; None takes bf16 where the hardware has it and fp32 elsewhere.

    Returns: the pipeline, on the accelerator if there is one; under `accelerate launch`, on this process's own.

    Raises: OSError: if there is no such model, it is none of ours, or it cannot be read.
    """
    device = process_state().device
    dtype = dtype or fast_dtype(device)
    logger.info("Encoding with %s in %s.", device, dtype)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        if config.model_type != TinyBertConfig.model_type:
            raise ValueError(f"it is a {config.model_type} model, and search needs a tinybert model.")
        return SemanticSearchPipeline(
            model=TinyBertModel.from_pretrained(model, revision=revision, dtype=dtype).to(device),
            tokenizer=AutoTokenizer.from_pretrained(model, revision=revision),
            device=device,
        )
    except (OSError, ValueError) as error:
        place = "from this folder" if Path(model).is_dir() else "(no such folder here) from the Hub"
        raise OSError(f"Could not load the model {model} {place}: {error}") from error


def encode_by_processes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    show_progress_bar: bool = False,
) -> Tensor:
    """`encode` with the texts shared out among the processes of `accelerate launch`; each returns all N rows."""
    state = process_state()
    with state.split_between_processes(list(texts)) as share:
        rows = encode(model, tokenizer, share, show_progress_bar=show_progress_bar and state.is_main_process)
    # Up to accelerate 1.12 at least, a process for which there is no text is given the last one again.
    return torch.cat(gather_object([rows]))[: len(texts)]


@dataclass
class SearchArguments:
    """What to search, where and for what."""

    model: str = field(metadata={"help": "A model folder or a Hub id."})
    query: str = field(metadata={"help": "The question, or a few words."})
    chunks: str = field(metadata={"help": "A text file with one chunk a line, or - for standard input."})
    top_k: int = field(default=3, metadata={"help": "How many chunks to print."})
    json: bool = field(default=False, metadata={"help": "Print a JSON list of {index, score, text}."})


def read_chunks(path: str) -> list[str]:
    """The lines of a file or of standard input (`-`) that are not blank."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def main() -> None:
    (arguments,) = HfArgumentParser(
        SearchArguments, prog="python -m tinybert_hf.search"
    ).parse_args_into_dataclasses()
    disable_progress_bar()  # the answer is what the user waits for, not the loading of a small model
    with errors_as_messages():
        chunks = read_chunks(arguments.chunks)
        results = load_search_pipeline(arguments.model)(arguments.query, chunks, arguments.top_k)
    if arguments.json:
        print(json.dumps(results, ensure_ascii=False))
        return
    for rank, result in enumerate(results, start=1):
        print(f"{rank:3d}. {result['score']:.3f}  {result['text']}")


if __name__ == "__main__":
    main()
