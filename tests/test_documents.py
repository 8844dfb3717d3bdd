"""Pairs from documents: the query says what the rest is about, and every draw can be repeated."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from fresh_process import run_python
from transformers import PreTrainedTokenizerBase

from tinybert_hf import documents as module
from tinybert_hf.data import iterate_texts, text_id
from tinybert_hf.documents import draw_pair, pairs_from_documents, read_documents, split_sections, tokenize_documents
from tinybert_hf.errors import InputError

ROOT = Path(__file__).parent.parent
FLAGS = {"text": "document_column", "title": "title_column"}
CLS, SEP = 1, 2


def read(rows: list[dict[str, Any]], **columns: str) -> Dataset:
    return read_documents(Dataset.from_list(rows), columns or {"text": "text"}, "notes", FLAGS)


def row(length: int, head: int, number: int = 0) -> dict[str, Any]:
    """A document whose tokens are all different, so that the place of a span can be read off it."""
    return {"text": [CLS, *range(100, 100 + length), SEP], "head": head, "text_id": number}


def test_the_head_is_the_title_the_heading_or_the_first_sentence() -> None:
    markdown = "Edit text. Fast.\n\n# Install\nRun it.\n```\n# no heading\n```\n## Why ##\nSpeed."
    code = "Run it.\n```\n# no heading\n```"
    assert list(read([{"text": markdown}])) == [
        {"head": "Edit text.", "body": "Fast."},
        {"head": "Install", "body": code},
        {"head": "Why", "body": "Speed."},
    ]
    titled = read([{"b": markdown, "t": " Editor "}], text="b", title="t")
    assert titled["head"][:] == ["Editor", "Editor: Install", "Editor: Why"]
    assert titled["body"][:] == ["Edit text. Fast.", code, "Speed."]


@pytest.mark.parametrize(
    ("text", "head", "body"),
    [
        ("Plays music 2.0 well! Try it.", "Plays music 2.0 well!", "Try it."),
        ("one line\nanother", "one line", "another"),
        ("only this", "only this", ""),
        ("  \n Only this. \n", "Only this.", ""),
    ],
)
def test_the_first_sentence_ends_at_a_stop_or_a_line(text: str, head: str, body: str) -> None:
    assert list(read([{"text": text}])) == [{"head": head, "body": body}]


def test_a_sentence_without_blanks_ends_at_its_stop_and_a_colon_ends_none() -> None:
    texts = ["编辑文本。快速。", "It plays games: chess, go. Try it."]
    assert list(read([{"text": text} for text in texts])) == [
        {"head": "编辑文本。", "body": "快速。"},
        {"head": "It plays games: chess, go.", "body": "Try it."},
    ]


def test_underlined_headings_begin_sections() -> None:
    assert list(split_sections("Guide\n=====\nRead *this*.\n\nA way\nto install\n---\nRun it.")) == [
        ("Guide", "Read *this*."),
        ("A way to install", "Run it."),
    ]


def test_headings_in_lists_and_quotations_begin_no_section() -> None:
    text = "# A\n- b\n\n  # c\n  d\n\n> # e\n> f\n\n# G\nh"
    assert list(split_sections(text)) == [("A", "- b\n\n  # c\n  d\n\n> # e\n> f"), ("G", "h")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sections_end_where_they_do_with_every_kind_of_line(end: str) -> None:
    assert list(split_sections(end.join(("# A", "b", "c", "# D", "e")))) == [("A", "b\nc"), ("D", "e")]


def test_headings_without_text_are_no_documents() -> None:
    assert list(split_sections("# A\n# B\n\nb\n#no heading\n# C")) == [("B", "b\n#no heading")]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match=r"notes has no column 'name'; it has text\. Pass --title_column"):
        read([{"text": "a"}], text="text", title="name")


def test_the_fixed_pairs_leave_out_single_sentences() -> None:
    pairs = pairs_from_documents(read([{"text": "Edit text. Fast."}, {"text": "Alone."}]))
    assert list(pairs) == [{"query": "Edit text.", "answer": "Fast."}]
    with pytest.raises(InputError, match="None of 1 documents has a second sentence"):
        pairs_from_documents(read([{"text": "Alone."}]))


def test_the_tokens_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Play music from the command line. Read and write compressed archives."
    documents = read([{"text": text}, {"text": "Music."}])
    (tokens,) = tokenize_documents(documents, tokenizer, max_length=100)
    assert tokens["text"] == tokenizer(text)["input_ids"]
    head = tokenizer(text.split(". ")[0] + ".")["input_ids"]
    assert [CLS, *tokens["text"][1 : 1 + tokens["head"]], SEP] == head
    assert tokens["text_id"] == text_id(text.replace(". ", ".\n"))
    (short,) = tokenize_documents(documents, tokenizer, max_length=12)
    assert short["text"] == tokenizer(text, truncation=True, max_length=12)["input_ids"]
    assert short["head"] <= 10
    assert " ".join(iterate_texts(documents)) == f"{text} Music."


def test_documents_without_enough_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="None of 1 documents has 8 tokens"):
        tokenize_documents(read([{"text": "Music."}]), tokenizer, max_length=32)


def test_the_query_is_a_span_of_the_head_and_the_answer_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 0.0)
    starts, lengths = set(), set()
    for epoch in range(3000):
        query, answer = draw_pair(row(60, head=20), seed=0, epoch=epoch)
        assert (query[0], query[-1], answer[0], answer[-1]) == (CLS, SEP, CLS, SEP)
        span = query[1:-1]
        assert span == list(range(span[0], span[0] + len(span)))
        assert answer[1:-1] == [token for token in range(100, 160) if token not in span]
        assert span[-1] < 120
        starts.add(span[0])
        lengths.add(len(span))
    assert lengths == set(range(module.SPAN_TOKENS[0], module.SPAN_TOKENS[1] + 1))
    assert starts == set(range(100, 121 - module.SPAN_TOKENS[0]))  # from which the shortest span fits


def test_a_short_head_is_the_query_whole_and_a_short_document_keeps_half() -> None:
    assert draw_pair(row(60, head=2), seed=0, epoch=0)[0] == [CLS, 100, 101, SEP]
    for epoch in range(50):
        pair = draw_pair(row(9, head=9), seed=0, epoch=epoch)
        assert len(pair[0]) - 2 == 4
        assert len(pair[1]) - 2 in (5, 9)


def test_the_answer_keeps_the_span_now_and_then() -> None:
    kept = sum(len(draw_pair(row(60, 20, i), seed=0, epoch=0)[1]) == 62 for i in range(2000))
    assert kept / 2000 == pytest.approx(module.KEPT, abs=0.03)


def test_a_draw_depends_on_seed_epoch_and_document() -> None:
    def draw(seed: int, epoch: int) -> list[tuple[list[int], list[int]]]:
        return [draw_pair(row(60, 20, number), seed, epoch) for number in range(20)]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)
    assert len({tuple(pair[0]) for pair in draw(0, 0)}) > 10, "documents must not all be cut at one place"


@pytest.mark.slow
def test_another_process_draws_the_same(tmp_path: Path) -> None:
    printed = run_python(
        f"from tinybert_hf.documents import draw_pair; print([*draw_pair({row(60, 20, 2**62)}, 3, 4)])",
        tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        without_package=False,
    )
    assert printed.strip() == str([*draw_pair(row(60, 20, 2**62), 3, 4)])
