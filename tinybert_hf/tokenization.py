"""Texts to a tokenizer that every version of transformers loads without remote code."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .data import text_id
from .errors import InputError
from .files import read_json, write_json
from .languages import UNSPACED
from .pipeline_tinybert import LONGEST_WORD, cut_texts

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]  # ids 0 to 3
# What a saved tokenizer's settings may hold: those of BERT's and of XLM-RoBERTa's, and none of a call.
SAVED_SETTINGS = {
    *("added_tokens_decoder", "additional_special_tokens", "bos_token", "clean_up_tokenization_spaces", "cls_token"),
    *("do_basic_tokenize", "do_lower_case", "eos_token", "extra_special_tokens", "mask_token", "model_input_names"),
    *("model_max_length", "never_split", "pad_token", "padding_side", "sep_token", "strip_accents", "unk_token"),
    *("tokenize_chinese_chars", "tokenizer_class", "truncation_side"),
}
MIN_ALPHABET = 1000  # characters with tokens of their own, as in BERT; words with rarer ones become [UNK]
COVERAGE = 0.9995  # of the characters in the texts, as in XLM-R; many for Chinese
MOST_UNKNOWN, MOST_CUT = 0.01, 0.1  # shares of the tokens and of the texts above which training warns
UNSPACED_PIECE = 16  # letters that are taken for a word where there are no blanks between words


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 30_000, model_max_length: int = 350
) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer (Schuster and Nakajima 2012; Devlin et al. 2018).

    The same texts give the same tokenizer. By itself the trainer breaks ties between equally frequent pairs by the
    order of a hash table, which differs from run to run; here every character has its id before training starts.

    The texts are read once and held in memory. `vocab_size` counts the four special tokens; few texts give fewer.

    Raises: InputError: if the texts hold no word.
    """
    # Queries are typed in lower case and without accents, answers are not. The marks of other scripts than Latin, Greek
    # and Cyrillic, which have a block of their own, tell words apart.
    lower_case = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    without_marks = normalizers.Replace(Regex("[\u0300-\u036f]"), "")
    normalizer = normalizers.Sequence([lower_case, normalizers.NFD(), without_marks, normalizers.NFC()])
    unspaced = pre_tokenizers.Split(Regex(f"[{UNSPACED}]{{1,{UNSPACED_PIECE}}}"), "isolated")
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), unspaced])
    normalized = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(character for text in normalized for character in text if not character.isspace())
    if not counts:
        raise InputError("The tokenizer's training texts hold no word; pass data with text in it.")
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    covered = np.cumsum([counts[character] for character in by_frequency])
    size = max(MIN_ALPHABET, int(np.searchsorted(covered, COVERAGE * covered[-1])) + 1)
    size = min(size, vocab_size // 4)  # each character takes two tokens; leave half for longer ones
    rare = str.maketrans(dict.fromkeys(by_frequency[size:], " "))
    alphabet = sorted(by_frequency[:size])

    trainee = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # The trainer takes the square of a word's length in time.
    without_long = pre_tokenizers.Split(Regex(f".{{{LONGEST_WORD + 1},}}"), "removed")
    trainee.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, without_long])
    first = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    trainee.train_from_iterator((text.translate(rare) for text in normalized), trainer)

    tokenizer = Tokenizer(models.WordPiece(trainee.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
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
    special: dict[str, Any] = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    special["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **special)


def tokenize_columns(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, prompts: Mapping[str, str] | None = None
) -> Dataset:
    """Replace every column of texts by its token ids, and add `<column>_id`, the numbers of its texts (`text_id`).

    `datasets` keeps the result on disk beside the data and takes it from there in the next run.
    """
    columns = dataset.column_names
    prompts = prompts or {}
    before = {name: prompts.get("query" if name == "query" else "document", "") for name in columns}

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = {name: cut_texts((before[name] + text for text in batch[name]), max_length) for name in columns}
        tokens = {name: tokenizer(texts[name], truncation=True, max_length=max_length) for name in columns}
        ids = {f"{name}_id": [text_id(text) for text in batch[name]] for name in columns}
        return {name: tokens[name]["input_ids"] for name in columns} | ids

    return map_tokens(dataset, tokenize, tokenizer, f"{max_length}{prompts or ''}")


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Mapping[str, str], max_length: int) -> list[list[int]]:
    """The token ids of the prompts of queries and of documents, without special tokens.

    Raises: InputError: if one leaves a text less than half of `max_length` tokens.
    """
    texts = [prompts.get(kind, "").rstrip() for kind in ("query", "document")]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if (longest := max(map(len, tokens))) > max_length // 2:
        raise InputError(f"A prompt has {longest} tokens, and the encoder takes {max_length}. Pass a shorter one.")
    return tokens


def report_tokens(rows: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Tell which share of tokens is unknown and of texts is cut off, in 10,000 rows at most of `tokenize_columns`."""
    texts = [ids for column in rows.select_columns(list(columns))[:10_000].values() for ids in column]
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    tokens = [number for ids in texts for number in ids if number not in marks]
    unknown = tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))
    cut = sum(len(ids) >= max_length for ids in texts) / len(texts)
    logger.info("%.2g%% of the tokens are unknown; %.2g%% of the texts are cut off.", 100 * unknown, 100 * cut)
    if unknown > MOST_UNKNOWN:
        logger.warning(
            f"The tokenizer does not know {unknown:.0%} of the tokens in these texts, so the model cannot learn them. Start "
            "from an encoder for their language, as --model intfloat/multilingual-e5-small, or leave --model out."
        )
    if cut > MOST_CUT:
        logger.warning(
            f"{cut:.0%} of the texts have more than {max_length} tokens, and only these are read. Cut them into passages, "
            "or raise max_position_embeddings in --config_overrides."
        )


def map_tokens(
    dataset: Dataset, tokenize: Callable[..., dict[str, list]], tokenizer: PreTrainedTokenizerBase, settings: str
) -> Dataset:
    """Replace all columns by what `tokenize` makes of them; `datasets` keeps it by data, tokenizer and `settings`.

    By itself `datasets` would hash the tokenizer object, whose state changes with its first use.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    fingerprint = f"{text_id(f'{dataset._fingerprint} {state} {settings}'):016x}"
    old = dataset.column_names
    return dataset.map(tokenize, batched=True, remove_columns=old, desc="Tokenizing", new_fingerprint=fingerprint)


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
    config = read_json(path)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = tokenizer.model_input_names  # else segments are that class's choice
    write_json(path, {name: value for name, value in config.items() if name in SAVED_SETTINGS})
