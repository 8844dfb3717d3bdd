"""What the scripts that make retrieval data share: near-duplicates out, parts that share no text, files written.

Each of them leaves the same layout: train.jsonl.gz and validation.jsonl.gz, {"query", "answer"} a line, and test/, a
folder in the layout of BEIR (Thakur et al. 2021, arXiv:2104.08663).
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHINGLE_WORDS = 3
MAX_OVERLAP = 0.5


class Pair(NamedTuple):
    id: str
    query: str
    answer: str


class Split(NamedTuple):
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    distractors: list[Pair]  # only their answers are used


def normalise(text: str) -> str:
    """Letters only: a version number or a remark in brackets does not make another text.

    >>> normalise("GCC 12 (Ada), runtime files")
    'gcc runtime files'
    """
    return " ".join(re.findall(r"[^\W\d_]+", re.sub(r"\([^)]*\)", " ", text.lower())))


def first_of_each(pairs: Iterable[Pair], key: Callable[[Pair], str]) -> list[Pair]:
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(key(pair), pair)
    return list(first.values())


def first_of_near_duplicates(pairs: list[Pair]) -> list[Pair]:
    """Leave out each pair whose answer shares MAX_OVERLAP of its shingles, or of the other's, with a kept one.

    Overlap of shingles is the "containment" of Broder 1997 (On the resemblance and containment of
    documents). It is counted exactly: at this size an inverted index needs half a minute.
    """
    kept: list[Pair] = []
    sizes: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # shingle -> positions in kept
    for pair in pairs:
        words = normalise(pair.answer).split()
        starts = range(max(1, len(words) - SHINGLE_WORDS + 1))  # a shorter text is one shingle
        shingles = {tuple(words[i : i + SHINGLE_WORDS]) for i in starts}
        overlaps = Counter(position for shingle in shingles for position in holders.get(shingle, ()))
        if any(n >= MAX_OVERLAP * min(len(shingles), sizes[position]) for position, n in overlaps.items()):
            continue
        for shingle in shingles:
            holders[shingle].append(len(kept))
        kept.append(pair)
        sizes.append(len(shingles))
    return kept


def remove_duplicates(pairs: list[Pair]) -> list[Pair]:
    """Keep one of the pairs with one query, and one of those with nearly one answer; sorted by id."""
    pairs = first_of_each(sorted(pairs), lambda pair: normalise(pair.query))
    print(f"{len(pairs):6} different queries")
    pairs = first_of_near_duplicates(pairs)
    print(f"{len(pairs):6} answers of which no two share {MAX_OVERLAP:.0%} of the shorter one")
    return sorted(pairs)


def split(pairs: Sequence[Pair], validation: int, test: int, distractors: int, train: int | None = None) -> Split:
    """Shuffle (always in the same way) and cut; a pair stands in one part only.

    Args:
        train: pairs to train on; None for all that are left.

    Raises: ValueError: if there are fewer pairs than asked for.
    """
    if train is None:
        train = len(pairs) - validation - test - distractors
    sizes = (train, validation, test, distractors)
    if train < 1 or sum(sizes) > len(pairs):
        raise ValueError(f"{sizes} are asked for, but only {len(pairs)} are left; ask for fewer")
    rest = iter(random.Random(0).sample(pairs, sum(sizes)))
    return Split(*([next(rest) for _ in range(size)] for size in sizes))


def split_by_answer(pairs: list[Pair], validation: int, test: int) -> Split:
    """Hold out answers with all their queries; the test corpus is every answer, also those trained on.

    Args:
        validation: distinct answers to hold out while training.
        test: distinct answers to hold out for the test.
    """
    answers = list(dict.fromkeys(pair.answer for pair in sorted(pairs)))
    if validation + test >= len(answers):
        raise ValueError(f"{validation} and {test} are to be held out of {len(answers)} answers; ask for fewer")
    shuffled = random.Random(0).sample(answers, len(answers))
    held_out = dict.fromkeys(shuffled[:test], "test")
    held_out |= dict.fromkeys(shuffled[test : test + validation], "validation")
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in random.Random(0).sample(pairs, len(pairs)):
        parts[held_out.get(pair.answer, "train")].append(pair)
    return Split(**parts, distractors=parts["train"] + parts["validation"])


def make_data(description: str, load_pairs: Callable[[], list[Pair]]) -> None:
    """The command of a script whose pairs come from documents: no duplicates, every part from other documents."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    pairs = remove_duplicates(load_pairs())
    write_split(args.output_dir, split(pairs, validation=500, test=1_000, distractors=1_500))


def write_split(folder: Path, parts: Split) -> None:
    """Write the three files and folders, and print what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / "train.jsonl.gz", parts.train)
    write_pairs(folder / "validation.jsonl.gz", parts.validation)
    write_beir(folder / "test", parts.test, parts.test + parts.distractors)
    for name, part in parts._asdict().items():
        print(f"{len(part):6} {name}")


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    rows = jsonl({"query": pair.query, "answer": pair.answer} for pair in pairs)
    path.write_bytes(gzip.compress(rows, mtime=0))  # without a time, equal rows are equal bytes


def write_beir(folder: Path, queries: list[Pair], corpus: list[Pair]) -> None:
    """Write a BEIR folder; the right answer of a query is the document with its own pair's text.

    Raises: ValueError: if two pairs have one id.
    """
    ids = Counter(pair.id for pair in corpus)
    if repeated := [i for i, count in ids.items() if count > 1]:
        raise ValueError(f"{len(repeated)} ids stand for several pairs, as {repeated[0]}; they must be unique")
    documents = {pair.answer: pair.id for pair in sorted(corpus, reverse=True)}  # of equal texts, the first id
    # BEIR drops a hit whose id is the query's own, so the two must differ.
    query_rows = ({"_id": f"q-{pair.id}", "text": pair.query} for pair in sorted(queries))
    # No title: it would give the answer away.
    corpus_rows = ({"_id": i, "title": "", "text": text} for i, text in sorted((i, t) for t, i in documents.items()))
    qrels = "".join(f"q-{pair.id}\t{documents[pair.answer]}\t1\n" for pair in sorted(queries))
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "queries.jsonl").write_bytes(jsonl(query_rows))
    (folder / "corpus.jsonl").write_bytes(jsonl(corpus_rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels, encoding="utf-8")


def deb_files(packages: Iterable[str], wanted: Callable[[str, str], bool]) -> Iterator[tuple[str, str, bytes]]:
    """Download Debian packages and read files in them, without installing: (package, path, content), in order.

    Args:
        wanted: whether to read this (package, path); compressed files are named and returned as without .gz.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # apt downloads as the user _apt
        subprocess.run(["apt-get", "download", "--quiet", *packages], cwd=folder, check=True)
        for path in sorted(Path(folder).glob("*.deb")):
            package = path.name.split("_")[0]
            unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE)
            with unpack, tarfile.open(fileobj=unpack.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./").removesuffix(".gz")
                    if member.isfile() and wanted(package, name):
                        content = archive.extractfile(member).read()  # type: ignore[union-attr]  # it is a file
                        yield (package, name, gzip.decompress(content) if member.name.endswith(".gz") else content)


# No prose: code, tables, pages' frames.
LEFT_OUT = {"script", "style", "head", "nav", "footer", "pre", "table", "select", "form"}
FRAMES = re.compile(r"(?i)\b(nav\w*|sphinxsidebar|related|toc\w*|footer|header_?panel|breadcrumbs?|headerlink)\b")
BLOCKS = {"p", "li", "div", "dt", "dd", "section", "br"}


def html_sections(html: bytes) -> list[tuple[str, str]]:
    """The headings of a page, each with the text up to the next one.

    >>> html_sections(b"<h1>A <i>title</i></h1><p>Some text.<pre>code</pre><h2>Next</h2><ul><li>one<li>two</ul>")
    [('A title', 'Some text.'), ('Next', 'one two')]
    """
    import lxml.html  # only the scripts that read HTML need it

    sections: list[tuple[list[str], list[str]]] = []

    def collect(element: Any, in_heading: bool) -> None:
        if not isinstance(element.tag, str) or element.tag in LEFT_OUT or FRAMES.search(element.get("class", "")):
            return
        if element.get("role") == "navigation":
            return
        if re.fullmatch("h[1-6]", element.tag):
            in_heading = True
            sections.append(([], []))
        texts = sections[-1][0 if in_heading else 1] if sections else []
        texts += [" " if element.tag in BLOCKS else "", element.text or ""]
        for child in element:
            collect(child, in_heading)
            texts = sections[-1][0 if in_heading else 1] if sections else []
            texts.append(child.tail or "")
        texts.append(" " if element.tag in BLOCKS else "")

    parser = lxml.html.HTMLParser(encoding="utf-8")
    collect(lxml.html.document_fromstring(html, parser=parser), False)
    return [(" ".join("".join(heading).split()), " ".join("".join(text).split())) for heading, text in sections]
