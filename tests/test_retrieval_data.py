"""The scripts that make retrieval data: no text on two sides, no near-duplicates, an answer for every query.

python -m pytest tests/test_retrieval_data.py -q
"""

import gzip
import json
import sys
from pathlib import Path

import pytest

from tinybert_hf.beir import load_beir

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import make_debian_data
import make_docs_data
import make_manpage_data
import make_pairs_data
import retrieval_data
from retrieval_data import (
    Pair,
    first_of_near_duplicates,
    html_sections,
    remove_duplicates,
    split,
    split_by_answer,
    write_split,
)

PAIRS = [Pair(f"p{i:02}", f"query {i}", f"answer {i}") for i in range(40)]


def test_parts_share_no_pair() -> None:
    parts = split(PAIRS, validation=5, test=6, distractors=7)
    assert [len(part) for part in parts] == [22, 5, 6, 7]
    assert sorted(pair for part in parts for pair in part) == PAIRS


def test_more_than_there_is_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="only 40 are left"):
        split(PAIRS, validation=20, test=20, distractors=0)
    with pytest.raises(ValueError, match="held out of 40 answers"):
        split_by_answer(PAIRS, validation=20, test=20)


def test_queries_with_one_answer_stay_on_one_side() -> None:
    several = PAIRS + [Pair(f"r{i:02}", f"other query {i}", f"answer {i}") for i in range(40)]
    parts = split_by_answer(several, validation=5, test=6)
    assert [len(part) for part in parts] == [58, 10, 12, 68]
    sides = [{pair.answer for pair in part} for part in parts[:3]]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40


def test_what_is_written_is_read_by_evaluation(tmp_path: Path) -> None:
    shared = [Pair("a1", "first", "one text"), Pair("a2", "second", "one text")]
    write_split(tmp_path, retrieval_data.Split([PAIRS[0]], [PAIRS[1]], shared, [PAIRS[2]]))
    assert json.loads(gzip.decompress((tmp_path / "train.jsonl.gz").read_bytes())) == {
        "query": "query 0",
        "answer": "answer 0",
    }
    data = load_beir(tmp_path / "test")
    assert data.corpus == {"a1": "one text", "p02": "answer 2"}
    assert data.qrels == {"q-a1": {"a1": 1}, "q-a2": {"a1": 1}}
    assert data.queries == {"q-a1": "first", "q-a2": "second"}


def test_two_pairs_of_one_id_are_refused(tmp_path: Path) -> None:
    parts = retrieval_data.Split([], [], [PAIRS[0]], [PAIRS[1]._replace(id=PAIRS[0].id)])
    with pytest.raises(ValueError, match="1 ids stand for several pairs, as p00"):
        write_split(tmp_path, parts)


def test_a_text_that_shares_half_of_its_shingles_is_left_out() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    half = [*words[:6], "eleven", "twelve", "thirteen", "fourteen"]  # 4 of its 8 shingles
    less = [*words[:5], "alpha", "beta", "gamma", "delta", "epsilon"]  # 3 of 8
    pairs = [Pair(str(i), f"q{i}", " ".join(text)) for i, text in enumerate([words, half, less])]
    words_only = first_of_near_duplicates(pairs)
    assert [pair.id for pair in words_only] == ["0", "2"]


def test_one_of_two_pairs_with_one_query_stays() -> None:
    pairs = [Pair("b", "What is it? (2)", "alpha beta gamma"), Pair("a", "what is it", "delta epsilon zeta")]
    assert [pair.id for pair in remove_duplicates(pairs)] == ["a"]


def test_code_tables_and_frames_of_a_page_are_no_text() -> None:
    page = b"""<html><body><nav>menu</nav><p>before</p><h1>1.2. A title<a class="headerlink">#</a></h1>
        <p>Text.</p><pre>code</pre><table><tr><td>cell</td></tr></table><div class="sphinxsidebar">side</div>
        <p>More.</p><div role="navigation"><h3>Menu</h3></div></body></html>"""
    assert html_sections(page) == [("1.2. A title", "Text. More.")]
    assert make_docs_data.clean_heading("1.2. A title") == "A title"


def test_a_manual_page_is_name_and_description() -> None:
    page = b"""<html><head><title>LS(1)</title></head><body><h1 id="NAME">NAME</h1>ls \xe2\x80\x94 list files
        <h1>SYNOPSIS</h1>ls [file]<h1>DESCRIPTION</h1><p>Shows what a folder holds.</p></body></html>"""
    assert make_manpage_data.read_page(page) == Pair("LS(1)", "list files", "Shows what a folder holds.")
    assert make_manpage_data.read_page(page.replace(b"DESCRIPTION", b"OPTIONS")) is None


INDEX = """Package: {second}
Description-md5: 6c4d
Description-{language}: {synopsis}
 {first_line}
 {second_line}
 .
  * {item}

Package: {first}
Description-md5: 1a2b
Description-{language}: Leer
 Nichts.
"""
GERMAN = {
    "synopsis": "Konvertiert  Bilder",
    "first_line": "Ein Werkzeug für Bilder,",
    "second_line": "das viele Formate kennt.",
    "item": "schnell",
}


@pytest.mark.parametrize("language", ["en", "de", "pt_BR"])
def test_the_descriptions_of_a_language_are_read(language: str) -> None:
    index = INDEX.format(language=language, first="a", second="b", **GERMAN)
    assert make_debian_data.parse_index(index, language) == [
        Pair("a", "Leer", "Nichts."),
        Pair("b", "Konvertiert Bilder", "Ein Werkzeug für Bilder, das viele Formate kennt.\n* schnell"),
    ]


def test_what_is_short_or_whose_english_original_is_boilerplate_is_left_out() -> None:
    long_enough = "Ein Werkzeug, das viele Formate liest und auch schreibt."
    translated = [
        Pair("kept", "Konvertiert Bilder", long_enough),
        Pair("moved", "Übergangspaket für kept", long_enough),
        Pair("short", "Konvertiert Bilder", "Ein Werkzeug."),
        Pair("word", "Bilderwerkzeug", long_enough),
    ]
    english = [Pair("kept", "convert images", "A tool."), Pair("moved", "transitional package for kept", "Empty.")]
    assert make_debian_data.remove_short_and_boilerplate(translated, english) == translated[:1]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_file_of_pairs_is_read(name: str, tmp_path: Path) -> None:
    rows = b'{"question": " who\\u2028", "answer": "me"}\n\n'
    (tmp_path / name).write_bytes(gzip.compress(rows) if name.endswith(".gz") else rows)
    assert make_pairs_data.read_pairs(tmp_path / name, "question", "answer") == [Pair("0", "who", "me")]


def test_pairs_without_a_column_are_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text('{"question": "who", "answer": "me"}\n{"query": "what"}\n')
    with pytest.raises(ValueError, match=r"no 'question' in line 2, which has query\. Pass --query_column"):
        make_pairs_data.read_pairs(tmp_path / "faq.jsonl", "question", "answer")
