"""Train both stages from Python, as docs/training.md shows."""

from typing import TYPE_CHECKING

from .arguments import RetrievalArguments, SentimentArguments, TrainingArguments

if TYPE_CHECKING:
    from .setup import TrainingResult

__all__ = ["RetrievalArguments", "SentimentArguments", "TrainingArguments", "train_retrieval", "train_sentiment"]


def train_sentiment(arguments: SentimentArguments) -> "TrainingResult":
    """Stage one: train the encoder, with a classifier on it, to tell classes of texts apart. Raises: InputError."""
    from .sentiment import SentimentStage
    from .setup import run_stage

    return run_stage(arguments, SentimentStage)


def train_retrieval(arguments: RetrievalArguments) -> "TrainingResult":
    """Stage two: train the encoder to match a query to its answer, with in-batch negatives. Raises: InputError."""
    from .retrieval import build_stage
    from .setup import run_stage

    return run_stage(arguments, build_stage)
