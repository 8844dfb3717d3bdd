"""Search from the command line, and the search pipeline with this package's own code.

    python -m tinybert_hf.search --model FOLDER_OR_ID --query "undo a commit" --chunks passages.txt --top_k 3

A chunk is a line of the file (blank lines are skipped); `-` reads standard input. `--json` prints one JSON list.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from .arguments import errors_as_messages
from .configuration_tinybert import TinyBertConfig
from .modeling_tinybert import TinyBertModel
from .pipeline_tinybert import SemanticSearchPipeline


def load_search_pipeline(model: str | Path, revision: str | None = None) -> SemanticSearchPipeline:
    """`pipeline("semantic-search", model=...)` with the installed package's code instead of the model folder's.

    Args:
        model: a model folder or a Hub id.
        revision: a branch, tag or commit of the Hub repository.

    Raises: OSError: if there is no such model, it is none of ours, or it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        if config.model_type != TinyBertConfig.model_type:
            raise ValueError(f"it is a {config.model_type} model, and search needs a tinybert model.")
        return SemanticSearchPipeline(
            model=TinyBertModel.from_pretrained(model, revision=revision),
            tokenizer=AutoTokenizer.from_pretrained(model, revision=revision),
        )
    except (OSError, ValueError) as error:
        place = "from this folder" if Path(model).is_dir() else "(no such folder here) from the Hub"
        raise OSError(f"Could not load the model {model} {place}: {error}") from error


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
    logging.disable_progress_bar()  # the answer is what the user waits for, not the loading of a small model
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
