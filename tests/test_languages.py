"""Texts in five scripts: what BM25 finds, and what a new tokenizer keeps apart."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from tinybert_hf.index import SearchIndex
from tinybert_hf.ranking import Bm25
from tinybert_hf.tokenization import report_tokens, tokenize_columns, train_tokenizer

SENTENCES = {
    "Hindi": "कल कुल बारिश होगी और परसों धूप निकलेगी",
    "Thai": "ไม่ใช่ไม้ภาษาไทยเป็นภาษาราชการของประเทศไทยและเขียนโดยไม่เว้นวรรคระหว่างคำจึงต้องแบ่งเป็นส่วนๆ",
    "Japanese": "パンダはハンダではありません。日本語のテキストをトークンに分割する",
    "Chinese": "撤销最后一次提交的命令是什么",
    "Greek": "Πώς αναιρώ την τελευταία υποβολή;",
}
QUERIES = {
    "Hindi": "बारिश",
    "Thai": "ประเทศไทย",
    "Japanese": "トークンに分割",
    "Chinese": "撤销提交",
    "Greek": "υποβολή",
}


@pytest.mark.parametrize(("one", "other"), [("कल", "कुल"), ("ไม่", "ไม้"), ("パンダ", "ハンダ")])
def test_marks_that_tell_words_apart_stay(one: str, other: str) -> None:
    tokenizer = train_tokenizer([*SENTENCES.values(), one, other] * 5, vocab_size=2_000)
    assert tokenizer(one)["input_ids"] != tokenizer(other)["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer(one)["input_ids"] + tokenizer(other)["input_ids"]


@pytest.mark.parametrize(("typed", "written"), [("cafe", "Café"), ("αναιρω", "αναιρώ"), ("елка", "ёлка")])
def test_accents_of_latin_greek_and_cyrillic_do_not_matter(typed: str, written: str) -> None:
    tokenizer = train_tokenizer([written, "more words"] * 5, vocab_size=200)
    assert tokenizer(typed)["input_ids"] == tokenizer(written)["input_ids"]


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_of_every_script_is_many_known_tokens(language: str) -> None:
    tokenizer = train_tokenizer(list(SENTENCES.values()) * 5, vocab_size=2_000)
    tokens = tokenizer.tokenize(SENTENCES[language])
    assert tokenizer.unk_token not in tokens
    assert len(tokens) >= 5


def test_a_long_run_without_blanks_loses_one_piece_to_a_rare_letter() -> None:
    tokenizer = train_tokenizer([SENTENCES["Thai"]] * 5, vocab_size=500)
    tokens = tokenizer.tokenize(SENTENCES["Thai"] * 3 + "ឃ")
    assert tokens.count(tokenizer.unk_token) == 1
    assert len(tokens) > 15


def test_the_alphabet_covers_the_characters_of_chinese_texts() -> None:
    characters = [chr(0x4E00 + i) for i in range(3_000)]
    tokenizer = train_tokenizer(["".join(characters)] * 2, vocab_size=30_000)
    unknown = sum(tokenizer.unk_token in tokenizer.tokenize(character) for character in characters)
    assert unknown <= 0.0005 * len(characters)


def test_a_word_of_two_hundred_thousand_letters_does_not_stop_training() -> None:
    tokenizer = train_tokenizer(["an inline picture " + "x" * 200_000, "some words"], vocab_size=100)
    assert len(tokenizer.tokenize("picture")) < len("picture")
    assert tokenizer.tokenize("x" * 200) == [tokenizer.unk_token]


@pytest.mark.parametrize(("language", "query"), QUERIES.items())
def test_bm25_finds_texts_of_every_script(language: str, query: str) -> None:
    ids = list(SENTENCES)
    run = Bm25(list(SENTENCES.values())).rank({"q": query}, ids)
    assert next(iter(run["q"])) == language


def test_bm25_tells_apart_words_that_differ_in_a_mark() -> None:
    assert list(Bm25(["आज कल", "आज कुल"]).rank({"q": "कुल"}, ["a", "b"])["q"]) == ["b"]


def test_unknown_tokens_and_cut_texts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(["only English words are known here"] * 5, vocab_size=200)
    pairs = Dataset.from_dict({"query": ["words", SENTENCES["Thai"]], "answer": ["known words " * 9, "words"]})
    with caplog.at_level("INFO", "tinybert_hf.tokenization"):
        report_tokens(tokenize_columns(pairs, tokenizer, 12), ["query", "answer"], tokenizer, 12)
    told, unknown, cut = caplog.messages
    assert told == "33% of the tokens are unknown; 25% of the texts are cut off."
    assert "multilingual-e5-small" in unknown
    assert cut.startswith("25% of the texts have more than 12 tokens")


def test_the_words_of_an_index_are_those_of_every_script(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "scripts.index")
    rows = np.eye(len(SENTENCES))
    index.add(
        {"id": name, "text": text, "embedding": row} for row, (name, text) in zip(rows, SENTENCES.items(), strict=True)
    )
    for language, query in QUERIES.items():
        found = index.search([query], mode="bm25", embeddings=rows[:1])[0]
        assert [hit["id"] for hit in found] == [language]
