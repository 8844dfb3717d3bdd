"""Register the models with transformers: with the package imported, the Auto classes run its code.

Then they need no `trust_remote_code`. Every module that loads a model through an Auto class imports this one.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_tinybert import TinyBertConfig
from .modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel

AutoConfig.register(TinyBertConfig.model_type, TinyBertConfig)
AutoModel.register(TinyBertConfig, TinyBertModel)
AutoModelForSequenceClassification.register(TinyBertConfig, TinyBertForSequenceClassification)
