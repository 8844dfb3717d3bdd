"""tinybert_hf: a lightweight BERT-style encoder for semantic search.

Importing the package is quick: torch and transformers are imported when one of its names is used first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_tinybert import TinyBertConfig
    from .encoding import encode, encode_stream, load_search_pipeline
    from .errors import InputError
    from .index import SearchIndex
    from .modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel
    from .pipeline_tinybert import SemanticSearchPipeline
    from .training import RetrievalArguments, SentimentArguments, train_retrieval, train_sentiment

__version__ = "0.1.0"

# The module of the package that defines each name.
HOMES = {
    "InputError": "errors",
    **dict.fromkeys(("RetrievalArguments", "SentimentArguments", "train_retrieval", "train_sentiment"), "training"),
    **dict.fromkeys(("TinyBertForSequenceClassification", "TinyBertModel"), "modeling_tinybert"),
    **dict.fromkeys(("encode", "encode_stream", "load_search_pipeline"), "encoding"),
    "SearchIndex": "index",
    "SemanticSearchPipeline": "pipeline_tinybert",
    "TinyBertConfig": "configuration_tinybert",
}
__all__ = [*HOMES]
WITHOUT_MODELS = {"InputError", "RetrievalArguments", "SentimentArguments"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in WITHOUT_MODELS:
        import_module(".auto", __name__)  # so that transformers' Auto classes know the models too
    value = getattr(import_module(f".{HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
