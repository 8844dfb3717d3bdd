"""Tiny encoders of other projects with random weights, each with a tokenizer of its family."""

import json
from pathlib import Path

import torch
from conftest import TEXTS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tinybert_hf.tokenization import train_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
DISTILBERT_SIZES = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
# Name -> model, configuration, the tokenizer's kind and class. The last one is built as multilingual-e5-small is.
KINDS = {
    "bert": (BertModel, BertConfig, "wordpiece", "BertTokenizer"),
    "roberta": (RobertaModel, RobertaConfig, "bpe", "RobertaTokenizer"),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, "unigram", "XLMRobertaTokenizer"),
    "camembert": (CamembertModel, CamembertConfig, "unigram", "CamembertTokenizer"),
    "distilbert": (DistilBertModel, DistilBertConfig, "wordpiece", "DistilBertTokenizer"),
    "bert-with-xlm-rs-tokenizer": (BertModel, BertConfig, "unigram", "XLMRobertaTokenizer"),
}


def train_other_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as RoBERTa's, or Unigram as SentencePiece makes it: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_encoder(kind: str, folder: Path, **options: object) -> PreTrainedModel:
    """Save an encoder of one of KINDS, and return it; options as in `save_pretrained`."""
    model_class, config_class, family, tokenizer_class = KINDS[kind]
    tokenizer = train_tokenizer(TEXTS, 300, 512) if family == "wordpiece" else train_other_tokenizer(family)
    sizes = DISTILBERT_SIZES if kind == "distilbert" else SIZES
    # As they are published: RoBERTa and its kin count positions from the padding's id, 1, and know one segment.
    counted = {"max_position_embeddings": 32, "pad_token_id": 1, "type_vocab_size": 1}
    more = (
        counted if model_class in (RobertaModel, XLMRobertaModel, CamembertModel) else {"max_position_embeddings": 30}
    )
    config = config_class(vocab_size=len(tokenizer) + 8, **sizes, **more)
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # those of the norms too, so that a forgotten one shows
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}
    del settings["model_input_names"]  # the class knows
    path.write_text(json.dumps(settings))
    return model
