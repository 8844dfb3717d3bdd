"""Files, as people have them, to rows: nothing is guessed, nothing changed, nothing lost in silence.

for row in read_rows(Path("faq.csv"), {"question", "reply"}):  # or another one of READERS
    text = as_text(row.get("question"), "faq.csv, row 1, column question")

It imports neither torch nor `datasets`: a search reads its chunks with it.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import logging
import lzma
import math
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from .errors import InputError, MissingFileError, UnreadableError, import_extra

logger = logging.getLogger(__name__)

SAMPLE = 100_000  # bytes from which an encoding is proposed
Row = Mapping[str, Any]


class Written(NamedTuple):
    """How a file is written, where it does not say so itself."""

    encoding: str | None = None  # None: UTF-8, or what a byte order mark says
    separator: str | None = None  # of columns; None: the one of the header


PLAINLY = Written()


def file_suffix(path: Path) -> str:
    """The suffix that tells the kind of a file, without a compression: of faq.v2.CSV.gz it is .csv."""
    return next((suffix for suffix in map(str.lower, reversed(path.suffixes)) if suffix not in OPENERS), "")


def read_rows(
    path: Path, columns: Collection[str] = (), written: Written = PLAINLY, suffix: str | None = None
) -> Iterator[Row]:
    """The rows of a file, column -> value as the file has it. A column that a row lacks may be missing from it.

    `path` may be compressed; `-` is standard input. Nested JSON is searched for `columns`. `suffix` is the kind of the file,
    one of `READERS`; None takes that of its name.

    Raises: UnreadableError: if it cannot be read; with the line, the cause and what to do.
    """
    try:
        yield from READERS[suffix or file_suffix(path)](path, columns, written)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist (looked in {Path.cwd()}).") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(propose_encoding(path, error)) from error
    except RecursionError as error:
        raise UnreadableError(f"{path} is nested too deep to be read. Write one object a line (jsonl).") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UnreadableError(f"Could not read {path}: {error or type(error).__name__}. Is the file whole?") from error


OPENERS: dict[str, Callable[[Path], Any]] = {
    **{".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open},
    ".zst": lambda path: import_extra("backports.zstd", purpose="reading .zst").open(path, "rb"),
}


def open_bytes(path: Path) -> io.BufferedReader:
    raw: Any = sys.stdin.buffer if str(path) == "-" else OPENERS.get(path.suffix.lower(), io.FileIO)(path)
    return io.BufferedReader(raw)


def open_text(path: Path, encoding: str | None, newline: str | None = None) -> TextIO:
    """A text file past its byte order mark; `newline` as for `open`.

    Raises: InputError: if there is no such encoding, or the file is UTF-16 that does not say so.
    """
    raw = open_bytes(path)
    start = raw.peek(4096)[:4096]
    if encoding is None and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    if encoding is None and start.count(0) > len(start) // 5:
        side = "le" if start[1::2].count(0) > start[::2].count(0) else "be"
        raise UnreadableError(f"{path} is not in UTF-8. By its bytes it may be UTF-16: pass --encoding utf-16-{side}")
    try:
        text = io.TextIOWrapper(raw, encoding or "utf-8", newline=newline)
    except LookupError as error:
        raise InputError(f"There is no --encoding {encoding}; usual ones are cp1252, latin-1 and utf-16.") from error
    if start.startswith(codecs.BOM_UTF8):
        text.read(1)
    return text


def propose_encoding(path: Path, wrong: UnicodeDecodeError) -> str:
    """The line that is not in the encoding that was tried, and the one that its bytes look like."""
    from charset_normalizer import from_bytes

    tried = wrong.encoding.upper()
    if str(path) == "-":
        return f"Standard input is not in {tried}. Pass another --encoding, as cp1252."
    content = open_bytes(path).read()
    try:
        content.decode(tried)
    except UnicodeDecodeError as error:  # its place is one of the whole file
        wrong = error
    begin = content.rfind(b"\n", 0, wrong.start) + 1
    best = from_bytes(content[begin : begin + SAMPLE]).best()
    names = [*best.could_be_from_charset, best.encoding] if best else []  # they give the same text
    likely = names[-1] if names and "cp1252" not in names else "cp1252"
    line = content[begin : begin + 200].split(b"\n")[0].decode(likely, errors="replace").strip()
    number = content.count(b"\n", 0, begin) + 1
    return f"{path} is not in {tried} (line {number}). With --encoding {likely} this line would be: {line:.60}"


def txt_rows(path: Path, columns: Collection[str], written: Written) -> Iterator[Row]:
    """One text a line. No other character ends a line, as U+2028 and the form feed would for `splitlines`."""
    with open_text(path, written.encoding) as lines:
        for line in lines:
            yield {"text": line.rstrip("\n")}


def csv_rows(path: Path, columns: Collection[str], written: Written) -> Iterator[Row]:
    """Rows of a csv or tsv file; empty cells are None. A line `sep=;` before the header is obeyed."""
    csv.field_size_limit(2**31 - 1)  # by itself, a long text is refused
    told, head, skip = "", "", 0
    with open_text(path, written.encoding, newline="") as lines:
        for skip, line in enumerate(lines):  # noqa: B007 - the last one is wanted
            head = line.rstrip("\r\n")
            if head.lower().startswith("sep="):
                told = head[4:]
            elif head.strip():
                break
    separator = (written.separator or told).replace("\\t", "\t")
    candidates = [separator] if separator else ["\t", *",;|"] if file_suffix(path) == ".tsv" else [*",;\t|"]
    headers = {one: [name.strip() for name in next(csv.reader([head], delimiter=one), [])] for one in candidates}
    separator, header = max(headers.items(), key=lambda item: (len(set(columns) & set(item[1])), len(item[1])))
    if twice := [name for name in columns if header.count(name) > 1]:
        raise InputError(f"{path} has {header.count(twice[0])} columns called {twice[0]!r}. Rename one of them.")

    def parse(quoting: Any) -> Iterator[tuple[int, list[str]]]:
        """The numbers of first lines, and rows, the header first."""
        with open_text(path, written.encoding, newline="") as lines:
            rows = csv.reader(islice(lines, skip, None), delimiter=separator, quoting=quoting, strict=True)
            number = skip + 1
            try:
                for row in rows:
                    if row:
                        yield number, row
                    number = skip + rows.line_num + 1
            except csv.Error as error:
                raise InputError(
                    f"{path}, line {number}: {error}. Put quotation marks around a text that has some, and write each "
                    "of those twice. Correct the line, or save the table again."
                ) from error

    rows = parse(choose_quoting(path, separator, parse))
    next(rows, None)
    for number, row in rows:
        if any(row[len(header) :]):
            raise InputError(
                f"{path}, line {number} has {len(row)} fields, and the header has {len(header)}. Put quotation marks around a "
                f"text with {separator!r} in it, or pass another --separator."
            )
        yield {name: cell or None for name, cell in zip(header, row, strict=False)}


def choose_quoting(path: Path, separator: str, parse: Callable[[Any], Iterator[tuple[int, list[str]]]]) -> int:
    """Whether quotation marks hold texts together, as the standard says, or are characters of the texts.

    They are characters where only then every line has as many fields as the header: a lone one swallows lines.
    """
    widths = Counter(len(row) for _, row in parse(csv.QUOTE_NONE))
    regular = len(widths) == 1 and 1 not in widths
    try:
        joined = widths.total() - sum(1 for _ in parse(csv.QUOTE_MINIMAL))
    except InputError:
        if not regular:
            raise
        joined = widths.total()
    if not regular or not joined:
        return csv.QUOTE_MINIMAL
    if separator == "\t" or joined == widths.total():
        logger.info("%s: quotation marks are read as characters, so that each line is a row.", path)
        return csv.QUOTE_NONE
    logger.warning("%s: quotation marks join %d lines to others. Should they be rows of their own?", path, joined)
    return csv.QUOTE_MINIMAL


def xlsx_rows(path: Path, columns: Collection[str], written: Written) -> Iterator[Row]:
    """Rows of the first sheet, whose first row is the header."""
    import_extra("openpyxl", purpose="reading an Excel file")
    pandas = import_extra("pandas", purpose="reading an Excel file")
    with pandas.ExcelFile(path) as book:
        if len(book.sheet_names) > 1:
            logger.info("%s: only its first sheet is read, %s.", path, book.sheet_names[0])
        table = pandas.read_excel(book, dtype=object, keep_default_na=False, na_values=[""])
    yield from table.rename(columns=lambda name: str(name).strip()).to_dict("records")


def json_rows(path: Path, columns: Collection[str], written: Written) -> Iterator[Row]:
    """Objects, one a line, or all in one list or object."""
    with open_text(path, written.encoding) as lines:
        head = list(islice((line for line in lines if line.strip()), 2))
    try:
        by_line = (len(head) > 1 or file_suffix(path) != ".json") and isinstance(json.loads(head[0]), dict)
    except (ValueError, IndexError):
        by_line = False
    with open_text(path, written.encoding) as lines:
        if not by_line:
            yield from unnest(json.loads(lines.read(), parse_float=Decimal), set(columns), path)
            return
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line, parse_float=Decimal) if line.strip() else None
            except ValueError as error:
                raise UnreadableError(f"Could not read {path}, line {number}: {error}.") from error
            if value is not None:
                yield from unnest(value, set(columns), path, {})


def unnest(value: Any, columns: set[str], path: Path, above: Row | None = None) -> Iterator[Row]:
    """The objects that have the columns, together with what stands above them, wherever they are in `value`.

    >>> squad = {"data": [{"title": "Git", "paragraphs": [{"context": "It ...", "qas": [{"question": "Why?"}]}]}]}
    >>> list(unnest(squad, {"question", "context"}, Path("squad.json")))
    [{'title': 'Git', 'context': 'It ...', 'question': 'Why?'}]
    """
    if isinstance(value, list):
        for item in value:
            yield from unnest(item, columns, path, above or {})
        return
    if not isinstance(value, dict):
        raise InputError(f"{path} has a {type(value).__name__} where an object of columns is expected: {value!r:.60}")
    row = {**(above or {}), **value}
    inner = [one for one in value.values() if isinstance(next(iter(one), 0) if isinstance(one, list) else one, dict)]
    if (columns and columns <= row.keys()) or (above is not None and not (columns and inner)):
        yield row
    elif above is None and len(value) > 1 and all(isinstance(item, str) for item in value.values()):
        yield from ({"query": query, "answer": answer} for query, answer in value.items())
    elif inner:
        for item in inner:
            yield from unnest(item, columns, path, {name: one for name, one in row.items() if one not in inner})
    else:
        yield row


READERS: dict[str, Callable[[Path, Collection[str], Written], Iterator[Row]]] = {
    **{".csv": csv_rows, ".tsv": csv_rows, ".xlsx": xlsx_rows, ".txt": txt_rows},
    **{".json": json_rows, ".jsonl": json_rows, ".ndjson": json_rows},
}


def plain(value: Any) -> Any:
    """A value as Python has it: numbers of numpy become Python's, and NaN, NaT and NA become None."""
    if getattr(value, "ndim", None) == 0 and value.dtype.kind in "biufU":
        value = value.item()
    missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def as_text(value: Any, place: str) -> str | None:
    """A text as it is, a number or a date written out, None for what is missing.

    Raises: InputError: if it is anything else, or no Unicode text; the message begins with `place`.
    """
    if type(value) is str and value.isascii():
        return value
    value = plain(value)
    if hasattr(value, "__len__") and not isinstance(value, str):
        raise InputError(
            f"{place}: a text or a number is expected, got {type(value).__name__}: {value!r:.60}. Write it as a text"
            + (", or pass --unfold_answers for a list of answers." if isinstance(value, list) else ".")
        )
    text = None if value is None else str(value)
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        half = f"the character {error.start + 1} is half of one (a lone surrogate)"
        raise InputError(f"{place}: {half}. Remove it.") from error
    return text


def as_column(values: Iterable[Any], written_out: bool, place: str) -> list[Any]:
    """Values of a column as they are stored: numbers where all of them are, and texts otherwise.

    Where a file has texts only (`written_out`), as csv has, they are numbers if each prints back the same. Raises:
    InputError: as `as_text`; messages begin with `place`.

    >>> as_column(["3", None, "12"], True, "size"), as_column(["03", "12"], True, "size")
    ([3, None, 12], ['03', '12'])
    """
    values = [plain(value) for value in values]
    given = [value for value in values if value is not None]
    kinds: set[type] = {float if isinstance(value, Decimal) else type(value) for value in given}
    if written_out:
        kinds = next(({kind} for kind in (int, float) if all(prints_back(text, kind) for text in given)), {str})
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else str
    if kind not in (int, float, bool) or (kind is int and any(not -(2**63) <= int(value) < 2**63 for value in given)):
        return [as_text(value, f"{place}, row {number}") for number, value in enumerate(values, start=1)]
    return [None if value is None else kind(value) for value in values]


def prints_back(text: str, kind: type[int] | type[float]) -> bool:
    try:
        return str(kind(text)) == text and math.isfinite(kind(text))
    except ValueError:
        return False
