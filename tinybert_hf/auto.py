"""Register the models with transformers: the Auto classes run the package's code, without `trust_remote_code`."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_tinybert import TinyBertConfig
from .modeling_tinybert import TinyBertForSequenceClassification, TinyBertModel

AutoConfig.register(TinyBertConfig.model_type, TinyBertConfig)
AutoModel.register(TinyBertConfig, TinyBertModel)
AutoModelForSequenceClassification.register(TinyBertConfig, TinyBertForSequenceClassification)
