"""Make the retrieval data: Debian package synopsis -> long description.

    python scripts/make_debian_data.py

Runs on a Debian or Ubuntu machine, without root. `apt-get update` fetches the English descriptions (the
Translation-en index of the machine's own release) into a temporary folder. The same index gives the same
bytes; compare the SHA-256 that is printed with the one in data/README.md. Takes half a minute.

Writes train.jsonl.gz and validation.jsonl.gz, {"query", "answer"} a line, and test/, a folder in the layout
of BEIR (Thakur et al. 2021, arXiv:2104.08663).
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import random
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

MIN_QUERY_WORDS = 2
MIN_ANSWER_WORDS = 8
# These descriptions tell what to do with a package, not what it is for.
BOILERPLATE = re.compile(r"(?i)\btransitional\b|\b(dummy|empty) (meta-?)?package|\bsafely( be)? removed\b")
SHINGLE_WORDS = 3
MAX_OVERLAP = 0.5


class Pair(NamedTuple):
    package: str
    query: str
    answer: str


class Split(NamedTuple):
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    distractors: list[Pair]  # only their answers are used


def read_index() -> str:
    """Download and return the Translation-en index of this machine's release.

    Updates and security are left out: they change every week and add little but new kernel versions.
    """
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt downloads as the user _apt
        for name in ("lists/partial", "cache"):
            Path(folder, name).mkdir(parents=True)
        options = ["-o", "Acquire::Languages=en", "-o", f"Dir::State::lists={folder}/lists"]
        options += ["-o", f"Dir::Cache={folder}/cache"]
        subprocess.run(["apt-get", *options, "--quiet", "update"], check=True, stdout=subprocess.DEVNULL)
        filters = ["Identifier: Translations", "Language: en", f"Codename: {codename}"]
        command = ["apt-get", *options, "indextargets", "--format", "$(FILENAME)", *filters]
        files = sorted(subprocess.check_output(command, text=True).split())
        if not files:
            raise RuntimeError(f"apt-get knows no Translation-en index for {codename}; check the apt sources")
        return subprocess.check_output(["/usr/lib/apt/apt-helper", "cat-file", *files]).decode()


def plain_text(lines: Iterable[str]) -> str:
    """Unwrap a long description: one paragraph or list line a line.

    Debian Policy 5.6.13: one leading space continues the paragraph, two or more keep the line as it is, and
    a full stop alone is a blank line.

    >>> plain_text([" A tool", " for work.", " .", " It has:", "  * one", "  * two"])
    'A tool for work.\\nIt has:\\n* one\\n* two'
    """
    paragraphs: list[str] = []
    continues = False
    for line in lines:
        text = " ".join(line.split())
        verbatim = line.startswith("  ")
        if text == ".":
            continues = False
        elif continues and not verbatim:
            paragraphs[-1] += " " + text
        else:
            paragraphs.append(text)
            continues = not verbatim
    return "\n".join(paragraphs)


def load_pairs(index: str) -> list[Pair]:
    """Parse the index and leave out short and boilerplate texts; sorted by package name."""
    pairs: dict[str, Pair] = {}
    for stanza in index.strip().split("\n\n"):
        fields, _, description = stanza.partition("\nDescription-en:")
        package = fields.removeprefix("Package:").split()[0]
        synopsis, *lines = description.split("\n")
        # A few packages differ between architectures and stand twice; the first is as good as the second.
        pairs.setdefault(package, Pair(package, " ".join(synopsis.split()), plain_text(lines)))
    kept = [pairs[package] for package in sorted(pairs)]
    print(f"{len(kept):6} packages in the index")
    kept = [pair for pair in kept if not BOILERPLATE.search(f"{pair.query}\n{pair.answer}")]
    print(f"{len(kept):6} without transitional, dummy and empty packages")
    kept = [pair for pair in kept if len(normalise(pair.query).split()) >= MIN_QUERY_WORDS]
    print(f"{len(kept):6} with a synopsis of {MIN_QUERY_WORDS} words or more")
    kept = [pair for pair in kept if len(pair.answer.split()) >= MIN_ANSWER_WORDS]
    print(f"{len(kept):6} with a description of {MIN_ANSWER_WORDS} words or more")
    kept = [pair for pair in kept if normalise(pair.query) != normalise(pair.answer)]
    print(f"{len(kept):6} whose description is not the synopsis again")
    return kept


def normalise(text: str) -> str:
    """Letters only: a version number or a remark in brackets does not make another text.

    >>> normalise("GCC 12 (Ada), runtime files")
    'gcc runtime files'
    """
    return " ".join(re.findall(r"[^\W\d_]+", re.sub(r"\([^)]*\)", " ", text.lower())))


def remove_duplicates(pairs: list[Pair]) -> list[Pair]:
    """Keep one package of each family (foo, foo-data, libfoo-dev), so that a query has one right answer.

    The shortest name stays: it is mostly the program itself. Sorted by package name.
    """
    pairs = sorted(pairs, key=lambda pair: (len(pair.package), pair.package))
    pairs = first_of_each(pairs, lambda pair: normalise(re.split(" --? ", pair.query)[0]))
    print(f"{len(pairs):6} different synopses, not counting an ending like ' - development files'")
    pairs = first_of_each(pairs, lambda pair: normalise(pair.answer))
    print(f"{len(pairs):6} different descriptions")
    pairs = first_of_each(pairs, lambda pair: normalise(pair.answer.split("\n")[0]))
    print(f"{len(pairs):6} different first paragraphs")
    pairs = first_of_near_duplicates(pairs)
    print(f"{len(pairs):6} descriptions of which no two share {MAX_OVERLAP:.0%} of the shorter one")
    return sorted(pairs)


def first_of_each(pairs: list[Pair], key: Callable[[Pair], str]) -> list[Pair]:
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


def split(pairs: list[Pair], train: int, validation: int, test: int, distractors: int) -> Split:
    """Shuffle (always in the same way) and cut; a pair stands in one part only.

    Raises: ValueError: if there are fewer pairs than asked for.
    """
    sizes = (train, validation, test, distractors)
    if sum(sizes) > len(pairs):
        raise ValueError(f"{sizes} are {sum(sizes)} pairs, but only {len(pairs)} are left; ask for fewer")
    rest = iter(random.Random(0).sample(pairs, sum(sizes)))
    return Split(*([next(rest) for _ in range(size)] for size in sizes))


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    rows = jsonl({"query": pair.query, "answer": pair.answer} for pair in pairs)
    path.write_bytes(gzip.compress(rows, mtime=0))  # without a time, equal rows are equal bytes


def write_beir(folder: Path, queries: list[Pair], corpus: list[Pair]) -> None:
    """Write a BEIR folder; each query has one right answer, the description of its own package."""
    # BEIR drops a hit whose id is the query's own, so the two must differ.
    query_rows = ({"_id": f"q-{pair.package}", "text": pair.query} for pair in sorted(queries))
    # No title: the package's name would give the answer away.
    corpus_rows = ({"_id": pair.package, "title": "", "text": pair.answer} for pair in sorted(corpus))
    qrels = "".join(f"q-{pair.package}\t{pair.package}\t1\n" for pair in sorted(queries))
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "queries.jsonl").write_bytes(jsonl(query_rows))
    (folder / "corpus.jsonl").write_bytes(jsonl(corpus_rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Debian retrieval data.")
    parser.add_argument("--output_dir", type=Path, default=Path("data/debian"))
    args = parser.parse_args()

    index = read_index()
    print(f"index SHA-256 {hashlib.sha256(index.encode()).hexdigest()}")
    pairs = remove_duplicates(load_pairs(index))
    parts = split(pairs, train=18_000, validation=1_000, test=1_000, distractors=9_000)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_pairs(args.output_dir / "train.jsonl.gz", parts.train)
    write_pairs(args.output_dir / "validation.jsonl.gz", parts.validation)
    write_beir(args.output_dir / "test", parts.test, parts.test + parts.distractors)
    for name, part in parts._asdict().items():
        print(f"{len(part):6} {name}")


if __name__ == "__main__":
    main()
