"""A trained tokenizer numbers, lower-cases, frames and cuts as the model expects, whoever loads it.

python -m pytest tests/test_tokenization.py -q
"""

import json
from pathlib import Path

import pytest
from conftest import TEXTS
from fresh_process import run_stranger
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tinybert_hf.data import load_data, text_id
from tinybert_hf.errors import InputError
from tinybert_hf.tokenization import SPECIAL_TOKENS, save_tokenizer, tokenize_columns, train_tokenizer, wrap_tokenizer


def test_the_special_tokens_have_the_ids_0_to_3(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_tokens_to_ids(["[UNK]", "[CLS]", "[SEP]", "[PAD]"]) == [0, 1, 2, 3]
    assert (tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == 3
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 2, 3]  # no character is matched as a special token
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_a_text_stands_between_cls_and_sep_and_a_pair_has_two_segments(tokenizer: PreTrainedTokenizerBase) -> None:
    music, mail = tokenizer.convert_tokens_to_ids(["music", "mail"])
    assert 0 not in (music, mail)
    single = tokenizer("music")
    assert (single["input_ids"], single["token_type_ids"]) == ([1, music, 2], [0, 0, 0])
    pair = tokenizer("music", "mail")
    assert pair["input_ids"] == [1, music, 2, mail, 2]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    padded = tokenizer(["music", "music mail"], padding=True)
    assert padded["input_ids"][0] == [1, music, 2, 3]
    assert padded["attention_mask"][0] == [1, 1, 1, 0]


def test_case_and_accents_do_not_matter(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = tokenizer("play music")["input_ids"]
    assert 0 not in plain
    for text in ("Play MUSIC", "pläy músic", "  play\tmusic\n"):
        assert tokenizer(text)["input_ids"] == plain


def test_what_was_never_seen_is_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("☃")["input_ids"] == [1, 0, 2]


def test_tokens_read_back_as_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("read editorial mail")["input_ids"]
    assert len(ids) > 5  # a word is in pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == "read editorial mail"


def test_truncation_cuts_at_the_maximum_length_and_keeps_sep(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("music " * 100, truncation=True)["input_ids"]
    assert (len(ids), ids[0], ids[-1]) == (32, 1, 2)
    pair = tokenizer("music " * 100, "mail " * 100, truncation=True)["input_ids"]
    assert (len(pair), pair.count(2)) == (32, 2)


@pytest.mark.parametrize("vocab_size", [8, 60, 150])
def test_the_vocabulary_has_the_size_asked_for(vocab_size: int) -> None:
    assert len(train_tokenizer(TEXTS, vocab_size)) == vocab_size


def test_few_texts_give_few_tokens() -> None:
    tokens = train_tokenizer(TEXTS, vocab_size=30_000).get_vocab()
    assert {word for text in TEXTS for word in text.split()} <= tokens.keys()
    assert len(tokens) < 300


def test_a_small_vocabulary_leaves_out_the_rarest_characters() -> None:
    tokenizer = train_tokenizer(["ab ba aab"] * 9 + ["z"], vocab_size=8)
    assert {"a", "b", "##a", "##b"} < tokenizer.get_vocab().keys()
    assert tokenizer("z bz ab")["input_ids"][1:3] == [0, 0]
    assert 0 not in tokenizer("abba")["input_ids"]


def test_equal_texts_give_an_equal_tokenizer() -> None:
    first, *others = (train_tokenizer(TEXTS, vocab_size=100) for _ in range(5))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    assert train_tokenizer(iter(TEXTS), vocab_size=100).get_vocab() == first.get_vocab()


def test_training_keeps_the_frequent_words_whole() -> None:
    tokenizer = train_tokenizer(["music"] * 9 + ["cimusumic"], vocab_size=21)
    assert tokenizer.tokenize("music") == ["music"]
    pieces = tokenizer.tokenize("cimusumic")
    assert len(pieces) > 1 and "".join(piece.removeprefix("##") for piece in pieces) == "cimusumic"


@pytest.mark.parametrize("texts", [[], [""], [" ", "\n\t"]])
def test_texts_without_a_word_are_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match="hold no word"):
        train_tokenizer(texts)


def test_special_tokens_elsewhere_are_an_error() -> None:
    vocabulary = {token: i for i, token in enumerate(reversed(SPECIAL_TOKENS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    with pytest.raises(InputError, match=r"at ids \[3, 2, 1, 0\]; the model expects 0, 1, 2, 3"):
        wrap_tokenizer(tokenizer, model_max_length=32)


def test_the_saved_class_is_one_that_transformers_4_knows(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 32
    assert "auto_map" not in config


@pytest.mark.slow
def test_it_loads_as_the_same_tokenizer_everywhere(
    tokenizer: PreTrainedTokenizerBase, model_folder: Path, tmp_path: Path
) -> None:
    texts = ["Pläy music", "a fast compiler " * 20]
    expected = dict(tokenizer(texts, ["mail"] * 2, truncation=True, padding=True))
    for cls in (AutoTokenizer, PreTrainedTokenizerFast):
        loaded = cls.from_pretrained(model_folder)
        assert dict(loaded(texts, ["mail"] * 2, truncation=True, padding=True)) == expected
        assert loaded.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
    printed = run_stranger(
        f"""
        import json
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained({str(model_folder)!r}, trust_remote_code=False)
        print(json.dumps(dict(tokenizer({texts!r}, ["mail"] * 2, truncation=True, padding=True))))
        """,
        home=tmp_path,
    )
    assert json.loads(printed) == expected


def test_columns_become_ids_and_numbers_of_their_texts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "music", "answer": "play music from the command line"}\n' * 2)
    dataset = load_data(str(path), texts=["query", "answer"])
    tokens = tokenize_columns(dataset, tokenizer, max_length=5)
    assert tokens[0]["query"] == tokenizer("music")["input_ids"]
    assert len(tokens[0]["answer"]) == 5
    assert tokens[1]["answer_id"] == text_id("play music from the command line")
    tokenizer("another text", truncation=True, max_length=3)  # changes the tokenizer's state
    again = tokenize_columns(dataset, tokenizer, max_length=5)
    assert again.cache_files == tokens.cache_files and tokens.cache_files, "read back, not made again"
    assert tokenize_columns(dataset, tokenizer, max_length=4).cache_files != tokens.cache_files
