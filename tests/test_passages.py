"""Documents to passages: what is found, how each kind is read, where it is cut.

python -m pytest tests/test_passages.py -q
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from semantic_text_splitter import MarkdownSplitter
from training_run import ROOT
from transformers import PreTrainedTokenizerBase

from tinybert_hf import passages
from tinybert_hf.errors import InputError, MissingExtraError, UnreadableError
from tinybert_hf.passages import find_files, find_headings, passage_splitter, read_files, read_passages

MARKDOWN = """---
author: nobody
---

# Guide

Read this first.

## Install

```bash
# not a heading
make install
```

### From source

Clone it with `git`, and build it.

## Use `it`

- one
- two
"""


def read(path: Path, characters: int = 60) -> list[dict[str, Any]]:
    return read_passages(path.name, path, MarkdownSplitter(characters))


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_pdf(path: Path, pages: list[str], title: str = "") -> Path:
    import matplotlib.pyplot as plt  # here, since every process of the tests would import it
    from matplotlib.backends.backend_pdf import PdfPages

    with plt.rc_context({"pdf.fonttype": 42}), PdfPages(path, metadata={"Title": title}) as pdf:
        for text in pages:
            figure = plt.figure()
            figure.text(0.1, 0.5, text)
            pdf.savefig(figure)
            plt.close(figure)
    return path


def write_docx(path: Path, paragraphs: list[tuple[str, str]]) -> Path:
    """The three parts without which a DOCX is none; a paragraph is its style and its text."""
    schema = "http://schemas.openxmlformats.org"
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{schema}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{schema}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{schema}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{schema}/wordprocessingml/2006/main"><w:body>{body}</w:body>'
        "</w:document>",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


# ---- Finding ----


def test_names_are_relative_to_the_folder_and_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.TXT", ".hidden.md", ".git/d.md", "a/.e/f.md", "image.png", "Makefile"):
        write(tmp_path / name, "text")
    assert list(find_files([tmp_path])) == ["a/c.TXT", "b.md"]


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    write(tmp_path / ".notes" / "a.md", "text")
    assert list(find_files([tmp_path / ".notes"])) == ["a.md"]


def test_names_in_several_folders_begin_where_their_paths_part(tmp_path: Path) -> None:
    files = [write(tmp_path / name, "text") for name in ("one/docs/a.md", "two/a.md", "two/b.md")]
    found = find_files([tmp_path / "one" / "docs", tmp_path / "two" / "a.md"])
    assert found == {"one/docs/a.md": files[0], "two/a.md": files[1]}


def test_links_out_of_the_folder_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "secret.md", "text")
    inside = write(tmp_path / "docs" / "a.md", "text")
    (tmp_path / "docs" / "out.md").symlink_to(secret)
    (tmp_path / "docs" / "folder").symlink_to(secret.parent)
    (tmp_path / "docs" / "round").symlink_to(tmp_path / "docs")
    (tmp_path / "docs" / "gone.md").symlink_to(tmp_path / "nothing")
    (tmp_path / "docs" / "same.md").symlink_to(inside)
    assert list(find_files([tmp_path / "docs"])) == ["a.md", "same.md"]


def test_a_pipe_is_no_document(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "text")
    os.mkfifo(tmp_path / "b.md")
    assert list(find_files([tmp_path])) == ["a.md"]


@pytest.mark.parametrize("name", ["", "nothing", "data.csv"])
def test_where_there_is_no_document_is_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / "data.csv", "a,b")
    with pytest.raises(InputError, match=r"no document in .*Supported are \.md|nothing does not exist"):
        find_files([tmp_path / name])


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.md", "text")
    write(tmp_path / "closed" / "b.md", "text")
    # Root may list any folder.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    with pytest.raises(UnreadableError, match="closed cannot be listed"):
        find_files([tmp_path])


# ---- Reading and cutting ----


def test_headings_are_paths_and_code_has_none() -> None:
    lines = MARKDOWN.splitlines()
    found = [(lines[line], path) for line, _, path in find_headings(MARKDOWN) if not lines[line].startswith("author")]
    assert found == [
        ("# Guide", ["Guide"]),
        ("## Install", ["Guide", "Install"]),
        ("### From source", ["Guide", "Install", "From source"]),
        ("## Use `it`", ["Guide", "Use it"]),
    ]


def test_headings_may_be_underlined_and_take_several_lines() -> None:
    text = "Guide\n=====\n\nRead this.\n\nA way\nto **install** it\n---\n\nRun it."
    assert find_headings(text) == [(0, 2, ["Guide"]), (5, 8, ["Guide", "A way to install it"])]


def test_headings_in_lists_and_quotations_are_none_of_the_document() -> None:
    text = "# A\n\n- # b\n\n1. c\n   ===\n\n> # d\n\n## E"
    assert find_headings(text) == [(0, 1, ["A"]), (9, 10, ["A", "E"])]


def test_a_markdown_file_is_cut_at_its_headings_and_passages_know_their_lines(tmp_path: Path) -> None:
    text = MARKDOWN.partition("\n\n")[2]
    found = read(write(tmp_path / "guide.md", text))
    assert [(record["heading"], record["line"]) for record in found] == [
        ("Guide", 1),
        ("Guide > Install", 5),
        ("Guide > Install > From source", 12),
        ("Guide > Use it", 16),
    ]
    lines = text.splitlines()
    assert all(record["text"].splitlines()[0] == lines[record["line"] - 1] for record in found)
    assert {record["title"] for record in found} == {"Guide"}
    assert [record["id"] for record in found] == [f"guide.md#{number}" for number in (1, 2, 3, 4)]
    assert {record["file_passages"] for record in found} == {4}


def test_a_heading_alone_is_no_passage(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.md", "# Heading\n\n" + "A long paragraph. " * 10), characters=50)
    assert len(found) > 2
    assert found[0]["text"].startswith("A long")
    assert {record["heading"] for record in found} == {"Heading"}


def test_a_heading_without_words_leaves_the_title_to_the_name(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "a.md", "#\n\nText below."))
    assert (record["title"], record["heading"]) == ("a", "")


def test_restructured_text_has_its_underlined_headings(tmp_path: Path) -> None:
    found = read(
        write(tmp_path / "a.rst", "Guide\n=====\n\nRead this first.\n\nInstall\n-------\n\nRun it, then wait.")
    )
    assert [record["heading"] for record in found] == ["Guide", "Guide > Install"]


def test_a_text_file_has_no_headings_and_its_name_for_a_title(tmp_path: Path) -> None:
    (record,) = read(write(tmp_path / "notes.txt", "# a comment\r\nof two lines"))
    assert record["text"] == "# a comment\nof two lines"
    assert (record["title"], record["heading"], record["line"]) == ("notes", None, 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    text = "Die Straße nach Köln führt über Düsseldorf, und größer wird sie später auch noch."
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.txt", 200)[0]["text"] == text


def test_html_is_read_without_scripts_and_addresses(tmp_path: Path) -> None:
    html = (
        "<html><head><meta charset='iso-8859-1'><title>The\n Guide</title><script>alert(1)</script></head><body>"
        "<h1>Köln</h1><p>See <a href='http://localhost/x'>the map</a>.<img src='file:///etc/passwd' alt='A map'></p>"
        "<h2>Trams</h2><table><tr><th>Line</th></tr><tr><td>16</td></tr></table></body></html>"
    )
    (tmp_path / "a.html").write_bytes(html.encode("latin-1"))
    first, second = read(tmp_path / "a.html", 40)
    assert first["text"] == "# Köln\n\nSee the map."
    assert "| 16 |" in second["text"]
    assert second["heading"] == "Köln > Trams"
    assert first["title"] == "The Guide"
    assert "line" not in first


def test_a_pdf_has_pages_and_a_title(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Valgrind finds errors.", "Massif measures the heap."], title="Tools")
    found = read(path, 30)
    assert [(record["text"], record["page"]) for record in found] == [
        ("Valgrind finds errors.", 1),
        ("Massif measures the heap.", 2),
    ]
    assert {record["title"] for record in found} == {"Tools"}


def test_a_docx_has_headings(tmp_path: Path) -> None:
    paragraphs = [("Heading1", "Guide"), ("Normal", "Read this first."), ("Heading2", "Install"), ("Normal", "Run it.")]
    found = read(write_docx(tmp_path / "a.docx", paragraphs), 30)
    assert [(record["heading"], record["text"]) for record in found] == [
        ("Guide", "# Guide\n\nRead this first."),
        ("Guide > Install", "## Install\n\nRun it."),
    ]


def test_a_notebook_is_its_cells(tmp_path: Path) -> None:
    cells = [{"cell_type": "markdown", "source": ["# Plots\n"]}, {"cell_type": "code", "source": ["plot(1)"]}]
    (record,) = read(write(tmp_path / "a.ipynb", json.dumps({"cells": cells})))
    assert "plot(1)" in record["text"]
    assert record["heading"] == "Plots"


def test_what_cannot_be_read_is_named_with_its_cause_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "LARGEST", 1_000)
    write(tmp_path / "a.md", "A text.")
    write(tmp_path / "blank.md", " \n ")
    write(tmp_path / "broken.docx", "no archive")
    write(tmp_path / "broken.pdf", "no PDF")
    write(tmp_path / "large.md", "x" * 1_001)
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2" * 9)
    write(tmp_path / "half.ipynb", '{"cells": [{"cell_type": "markdown", "source": ["half: \\ud83d"]}]}')
    found = list(read_files(find_files([tmp_path]), MarkdownSplitter(100)))
    assert [[record["file"] for record in records] for records in found] == [["a.md"]]
    causes = {message.partition(" was skipped: ")[0]: message for message in caplog.messages}
    assert set(causes) == {"blank.md", "broken.docx", "broken.pdf", "large.md", "binary.txt", "half.ipynb"}
    assert "holds no text" in causes["blank.md"]
    assert "BadZipFile" in causes["broken.docx"]
    assert "1,001 bytes, and 1,000 are read" in causes["large.md"]


def test_a_library_that_is_missing_is_no_fault_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    write(tmp_path / "a.pdf", "no PDF")
    with pytest.raises(MissingExtraError, match="documents"):
        list(read_files(find_files([tmp_path]), MarkdownSplitter(100)))


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_no_passage_is_longer_than_the_model_reads(tokenizer: PreTrainedTokenizerBase, share: float) -> None:
    config = SimpleNamespace(prompts={"document": "passage: "}, max_position_embeddings=24)
    splitter = passage_splitter(SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(config=config)), share)
    text = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    tokenizer(text, truncation=True, max_length=8)  # what a call before has set must not matter
    chunks = splitter.chunks(text)
    lengths = [len(ids) for ids in tokenizer([f"passage: {chunk}" for chunk in chunks], verbose=False)["input_ids"]]
    assert share * 24 - 4 < max(lengths) <= 24
    if share == 1.0:
        words = "".join(text.split())
        assert all("".join(chunk.split()) in words for chunk in chunks)
        assert sum(map(len, chunks)) >= 0.9 * len(text)


@pytest.mark.slow
def test_reading_documents_imports_no_model(tmp_path: Path) -> None:
    write(tmp_path / "a.html", "<h1>A</h1><p>b</p>")
    code = (
        "import sys; from pathlib import Path; from semantic_text_splitter import MarkdownSplitter;"
        "from tinybert_hf.passages import read_passages;"
        f"read_passages('a.html', Path({str(tmp_path / 'a.html')!r}), MarkdownSplitter(9));"
        "print({'torch', 'transformers', 'datasets', 'tinybert_hf.index'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_missing_library_is_named_with_the_extra() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no_such.*reading documents needs it: pip install 'tinybert_hf\[documents\]'"
    ):
        passages.import_library("no_such")
