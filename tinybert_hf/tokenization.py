"""Texts to a tokenizer that every version of transformers loads without remote code."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .data import text_id
from .errors import InputError
from .files import write_json

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]  # ids 0 to 3
# What a saved tokenizer's settings may hold: those of BERT's and of XLM-RoBERTa's, with what transformers adds.
SAVED_SETTINGS = {
    *("added_tokens_decoder", "additional_special_tokens", "backend", "bos_token", "clean_up_tokenization_spaces"),
    *("cls_token", "do_basic_tokenize", "do_lower_case", "eos_token", "extra_special_tokens", "is_local"),
    *("local_files_only", "mask_token", "max_length", "model_input_names", "model_max_length", "never_split"),
    *("pad_to_multiple_of", "pad_token", "pad_token_type_id", "padding_side", "sep_token", "stride", "strip_accents"),
    *("tokenize_chinese_chars", "tokenizer_class", "truncation_side", "truncation_strategy", "unk_token"),
}
MAX_ALPHABET = 1000  # characters with tokens of their own, as in BERT; words with rarer ones become [UNK]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 30_000, model_max_length: int = 350
) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer (Schuster and Nakajima 2012; Devlin et al. 2018).

    The same texts give the same tokenizer. By itself the trainer breaks ties between equally frequent pairs by the
    order of a hash table, which differs from run to run; here every character has its id before training starts.

    Args:
        texts: the training texts, read once and held in memory.
        vocab_size: at most this many tokens, the four special ones included; few texts give fewer.
        model_max_length: tokens after which `truncation=True` cuts.

    Raises: InputError: if the texts hold no word.
    """
    # Queries are typed in lower case and without accents, answers are not.
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    normalized = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(character for text in normalized for character in text if not character.isspace())
    if not counts:
        raise InputError("The tokenizer's training texts hold no word; pass data with text in it.")
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    size = min(MAX_ALPHABET, vocab_size // 4)  # each character takes two tokens; leave half for longer ones
    rare = str.maketrans(dict.fromkeys(by_frequency[size:], " "))
    alphabet = sorted(by_frequency[:size])

    trainee = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainee.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)],
        show_progress=False,
    )
    trainee.train_from_iterator((text.translate(rare) for text in normalized), trainer)

    tokenizer = Tokenizer(models.WordPiece(trainee.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return wrap_tokenizer(tokenizer, model_max_length)


def wrap_tokenizer(tokenizer: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    """Give a WordPiece tokenizer the template `[CLS] A [SEP] (B [SEP])`, segment ids and a maximum length.

    Raises: InputError: if the special tokens are not at ids 0 to 3.
    """
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != [0, 1, 2, 3]:
        raise InputError(f"The tokenizer has {', '.join(SPECIAL_TOKENS)} at ids {ids}; the model expects 0, 1, 2, 3.")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tokenize_columns(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Replace every column of texts by its token ids, and add `<column>_id`, the numbers of its texts (`text_id`).

    `datasets` keeps the result on disk beside the data and takes it from there in the next run.
    """
    columns = dataset.column_names

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list]:
        tokens = {name: tokenizer(batch[name], truncation=True, max_length=max_length) for name in columns}
        ids = {f"{name}_id": [text_id(text) for text in batch[name]] for name in columns}
        return {name: tokens[name]["input_ids"] for name in columns} | ids

    return map_tokens(dataset, tokenize, tokenizer, f"{max_length}")


def map_tokens(
    dataset: Dataset,
    tokenize: Callable[[dict[str, list[str]]], dict[str, list]],
    tokenizer: PreTrainedTokenizerBase,
    settings: str,
) -> Dataset:
    """Replace all columns by what `tokenize` makes of them; `datasets` keeps it by data, tokenizer and `settings`.

    By itself `datasets` would hash the tokenizer object, whose state changes with its first use.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    source = f"{dataset._fingerprint} {state} {settings}"
    return dataset.map(
        tokenize,
        batched=True,
        remove_columns=dataset.column_names,
        desc="Tokenizing",
        new_fingerprint=f"{text_id(source):016x}",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer for every reader: under the class name that transformers 4 knows too (5 writes
    `TokenizersBackend`), and without the padding and truncation of the last call, which `tokenizers` alone would apply.

    Of what its settings hold, entries that a tokenizer of this kind has are saved. Others could name code.
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    path = Path(folder, "tokenizer_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, {name: value for name, value in config.items() if name in SAVED_SETTINGS})
