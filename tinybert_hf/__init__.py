"""tinybert_hf: a lightweight BERT-style encoder for semantic search."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_tinybert import TinyBertConfig
from .modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel
from .pipeline_tinybert import SemanticSearchPipeline, encode, encode_stream

__version__ = "0.1.0"
__all__ = [
    "SemanticSearchPipeline",
    "TinyBertConfig",
    "TinyBertForSequenceClassification",
    "TinyBertModel",
    "encode",
    "encode_stream",
]

# With the package installed, the Auto classes run its code and need no trust_remote_code.
AutoConfig.register(TinyBertConfig.model_type, TinyBertConfig)
AutoModel.register(TinyBertConfig, TinyBertModel)
AutoModelForSequenceClassification.register(TinyBertConfig, TinyBertForSequenceClassification)
