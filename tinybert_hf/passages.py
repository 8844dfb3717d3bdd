"""Documents to passages: files are read as Markdown, and cut by their structure to what a model reads at once."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import InputError, MissingExtraError, MissingFileError, UnreadableError, import_extra

logger = logging.getLogger(__name__)

TEXTS = (".md", ".markdown", ".rst", ".txt")
CONVERTERS = {".html": "Html", ".htm": "Html", ".xhtml": "Html", ".docx": "Docx", ".epub": "Epub", ".ipynb": "Ipynb"}
SUFFIXES = (*TEXTS, *CONVERTERS, ".pdf")
LARGEST = 64 * 2**20  # bytes of a file

import_library = partial(import_extra, extra="documents", purpose="reading documents")


def find_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The documents among files and in folders, by their names from the folder that holds all of `paths`.

    Hidden ones are left out, and so are links to folders, and links that lead out of a folder.
    Raises: InputError: if a path is not there, a folder in it cannot be listed, or there is no document.
    """
    found: set[Path] = set()
    roots = [Path(os.path.expanduser(path)).resolve() for path in paths]
    for root in roots:
        if not root.exists():
            raise MissingFileError(f"{root} does not exist.")
        for path in [root] if root.is_file() else root.rglob("*"):
            if any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
                raise UnreadableError(f"{path} cannot be listed, and its documents would seem deleted. Permit it.")
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.resolve().is_relative_to(root):
                found.add(path)
    if not found:
        raise InputError(f"There is no document in {', '.join(map(str, paths))}. Supported are {', '.join(SUFFIXES)}.")
    base = os.path.commonpath([root.parent if root.is_file() else root for root in roots])
    return {path.relative_to(base).as_posix(): path for path in sorted(found)}


def read_files(files: Mapping[str, Path], splitter: Any) -> Iterator[list[dict[str, Any]]]:
    """The passages of each file that can be read; the others are named in the log. Raises: MissingExtraError."""
    for file, path in files.items():
        try:
            yield read_passages(file, path, splitter)
        except MissingExtraError:
            raise
        except Exception as error:  # the readers raise whatever their libraries raise
            logger.warning("%s was skipped: %s: %s", file, type(error).__name__, error)


def read_passages(file: str, path: Path, splitter: Any) -> list[dict[str, Any]]:
    """The passages of a document, under the name `file`, as records of an index. Nothing in it is run.

    Each has the title, the path of its headings, and the line of a text file or the page of a PDF on which it begins.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and {LARGEST:,} are read at most")
    data, suffix = path.read_bytes(), path.suffix.lower()
    text, title = read_text(data, suffix)
    found = [] if suffix in (".pdf", ".txt") else find_headings(text)
    headings = [(line, " > ".join(filter(None, path))) for line, _, path in found]
    chunks = splitter.chunk_indices(text)
    if headings:  # by themselves they are no passages
        chunks = [(start, chunk) for start, chunk in chunks if "\n" in chunk or not chunk.startswith("#")]
    if not chunks or "\0" in text:
        raise ValueError("it holds no text")
    title = " ".join((title or "").split()) or (headings[0][1] if headings else "") or path.stem
    f"{file}{title}{text}".encode()  # raises for halves of characters, which cannot be stored
    version = {"file": file, "file_sha256": hashlib.sha256(data).hexdigest(), "file_passages": len(chunks)}
    place = last = 0
    records = []
    for number, (start, chunk) in enumerate(chunks, start=1):
        place += text.count("\f" if suffix == ".pdf" else "\n", last, start)
        last = start
        record = version | {"title": title, "id": f"{file}#{number}", "text": chunk.replace("\f", "")}
        record["heading"] = next((path for line, path in reversed(headings) if line <= place), None)
        if suffix not in CONVERTERS:
            record["page" if suffix == ".pdf" else "line"] = place + 1
        records.append(record)
    return records


def read_text(data: bytes, suffix: str) -> tuple[str, str | None]:
    """Markdown or plain text, and the title where the format has one. Form feeds stand between the pages of a PDF."""
    if suffix == ".pdf":
        with import_library("pypdfium2").PdfDocument(data) as pdf:
            pages = [page.get_textpage().get_text_bounded() for page in pdf]
            return "\n\f".join(pages).replace("\r\n", "\n"), pdf.get_metadata_value("Title")
    if suffix in TEXTS:
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig").replace("\r\n", "\n"), None
    markitdown = import_library("markitdown")
    converter = getattr(markitdown.converters, f"{CONVERTERS.get(suffix, 'PlainText')}Converter")()
    # Of links and pictures only the words are kept: addresses say little, and take tokens.
    converted = converter.convert(BytesIO(data), markitdown.StreamInfo(extension=suffix), strip=["a", "img"])
    return converted.markdown, converted.title


def find_headings(text: str) -> list[tuple[int, int, list[str]]]:
    """Each heading of a Markdown text, in no list or quotation: its first line, the line after it, and its path.

    >>> find_headings("Guide\\n=====\\n\\nRead *this*.\\n## The `pip` way")
    [(0, 2, ['Guide']), (4, 5, ['Guide', 'The pip way'])]
    """
    above: dict[str, str] = {}  # tag -> words
    found = []
    for opening, inline in pairwise(import_library("markdown_it").MarkdownIt("commonmark").parse(text)):
        if opening.type == "heading_open" and opening.level == 0:
            shown = [part for part in inline.children if part.type not in ("image", "html_inline")]
            words = "".join(" " if part.type.endswith("break") else part.content for part in shown).strip(" ¶")
            above = {tag: other for tag, other in above.items() if tag < opening.tag} | {opening.tag: words}
            found.append((*opening.map, list(above.values())))
    return found


def passage_splitter(pipeline: Any, share: float = 1.0) -> Any:
    """Cuts texts where headings, blocks, sentences and words end, in this order, to a share of what a model reads.

    That is its length in its own tokens, without those that the prompt and the special tokens take.
    """
    tokenizer, config = pipeline.tokenizer, pipeline.model.config
    counter = deepcopy(tokenizer.backend_tokenizer)
    counter.no_truncation()
    counter.no_padding()
    taken = len(tokenizer(config.prompts.get("document", ""))["input_ids"])
    tokens = int(share * (min(tokenizer.model_max_length, config.max_position_embeddings) - taken))
    splitter = import_library("semantic_text_splitter").MarkdownSplitter
    return splitter.from_huggingface_tokenizer(counter, tokens, overlap=tokens // 8)
