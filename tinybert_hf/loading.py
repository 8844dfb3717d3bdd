"""Models and tokenizers of folders and of the Hub: nobody's code is run but ours, and what is damaged is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .errors import InputError, UnreadableError, check_hub_id
from .hub import limited_silence


@contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Say in one line that a model does not load, and why: UnreadableError in place of whatever the libraries raise."""
    try:
        if Path(source).exists():
            yield
            return
        check_hub_id(str(source), "model")
        with limited_silence():
            yield
    except InputError:
        raise
    except Exception as error:  # of a dozen kinds; those of tokenizers are bare
        place = "from this folder" if Path(source).is_dir() else "(no such folder here) from the Hub"
        reason = error if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise UnreadableError(f"Could not load the model {source} {place}: {reason}") from error


def load_tokenizer(source: str | Path, vocab_size: int, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with so many token embeddings; UnreadableError if one of its tokens has none."""
    with loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        highest = max([*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]], default=-1)
        if highest >= vocab_size:
            raise ValueError(f"its tokenizer has the id {highest}, and the model embeddings for {vocab_size} tokens.")
    return tokenizer


def load_model(
    model_class: Any,
    source: str | Path,
    weights_of: str | Path | None,
    may_be_new: tuple[str, ...] = (),
    **options: Any,
) -> PreTrainedModel:
    """`model_class.from_pretrained(weights_of, **options)`, whose weights are those of the files, every one of them.

    Args:
        source: what the messages name.
        may_be_new: beginnings of the names of tensors that are random where the files have none, or others.

    Raises: UnreadableError: if tensors are missing, of another shape, left over, or not finite; or nothing is readable.
    """
    with loading(source):
        model, found = model_class.from_pretrained(
            weights_of, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        different = {key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]}
        for problem, names in (
            ("lack", found["missing_keys"]),
            ("have another shape of", different),
            ("have, and the model has not,", found["unexpected_keys"]),
            ("are not finite in", [name for name, value in model.state_dict().items() if not value.isfinite().all()]),
        ):
            if wrong := sorted(name for name in names if not name.startswith(may_be_new)):
                more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
                raise ValueError(f"its weights {problem} {wrong[0]}{more}.")
    return model
