"""Make the retrieval data: Debian package synopsis -> long description.

    python scripts/make_debian_data.py
    python scripts/make_debian_data.py --language de --output_dir outputs/debian-de

Runs on a Debian or Ubuntu machine, without root. `apt-get update` fetches the descriptions (the Translation-en or
Translation-de index of the machine's own release) into a temporary folder. The same index gives the same
bytes; compare the SHA-256 that is printed with the one in data/README.md. Takes half a minute.

--language takes any language that Debian translates descriptions to. It must write blanks between its words.

With `--keep_near_duplicates` there are twice as many pairs, and a harder and less certain test: the packages of one
family (foo, foo-data, libfoo-dev) then stand in training and test, and a query often fits several of them.

Writes the layout that retrieval_data.py describes.
"""

import argparse
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from retrieval_data import (
    MAX_OVERLAP,
    Pair,
    first_of_each,
    first_of_near_duplicates,
    normalise,
    split,
    split_by_answer,
    write_split,
)

MIN_QUERY_WORDS = 2
MIN_ANSWER_WORDS = 8
SIZES = {"train": 18_000, "validation": 1_000, "test": 1_000, "distractors": 9_000}
SIZES_OF_TRANSLATIONS = {"validation": 500, "test": 1_000, "distractors": 1_500}  # the rest is for training
# These descriptions tell what to do with a package, not what it is for.
BOILERPLATE = re.compile(r"(?i)\btransitional\b|\b(dummy|empty) (meta-?)?package|\bsafely( be)? removed\b")


def read_index(language: str) -> str:
    """Download and return the descriptions in one language, of this machine's release.

    Updates and security are left out: they change every week and add little but new kernel versions.
    """
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt downloads as the user _apt
        for name in ("lists/partial", "cache"):
            Path(folder, name).mkdir(parents=True)
        options = ["-o", f"Acquire::Languages={language}", "-o", f"Dir::State::lists={folder}/lists"]
        options += ["-o", f"Dir::Cache={folder}/cache"]
        subprocess.run(["apt-get", *options, "--quiet", "update"], check=True, stdout=subprocess.DEVNULL)
        filters = ["Identifier: Translations", f"Language: {language}", f"Codename: {codename}"]
        command = ["apt-get", *options, "indextargets", "--format", "$(FILENAME)", *filters]
        files = sorted(subprocess.check_output(command, text=True).split())
        if not files:
            raise RuntimeError(f"apt-get knows no Translation-{language} index for {codename}; check the apt sources")
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


def parse_index(index: str, language: str) -> list[Pair]:
    """Synopsis and description of every package in an index; sorted by package name."""
    pairs: dict[str, Pair] = {}
    for stanza in index.strip().split("\n\n"):
        fields, _, description = stanza.partition(f"\nDescription-{language}:")
        package = fields.removeprefix("Package:").split()[0]
        synopsis, *lines = description.split("\n")
        # A few packages differ between architectures and stand twice; the first is as good as the second.
        pairs.setdefault(package, Pair(package, " ".join(synopsis.split()), plain_text(lines)))
    return [pairs[package] for package in sorted(pairs)]


def remove_short_and_boilerplate(pairs: list[Pair], english: list[Pair]) -> list[Pair]:
    """Leave out what is too short, and what tells how to handle a package: of translations, the original says so."""
    print(f"{len(pairs):6} packages in the index")
    boilerplate = {pair.id for pair in english if BOILERPLATE.search(f"{pair.query}\n{pair.answer}")}
    kept = [pair for pair in pairs if pair.id not in boilerplate]
    print(f"{len(kept):6} without transitional, dummy and empty packages")
    kept = [pair for pair in kept if len(normalise(pair.query).split()) >= MIN_QUERY_WORDS]
    print(f"{len(kept):6} with a synopsis of {MIN_QUERY_WORDS} words or more")
    kept = [pair for pair in kept if len(pair.answer.split()) >= MIN_ANSWER_WORDS]
    print(f"{len(kept):6} with a description of {MIN_ANSWER_WORDS} words or more")
    kept = [pair for pair in kept if normalise(pair.query) != normalise(pair.answer)]
    print(f"{len(kept):6} whose description is not the synopsis again")
    return kept


def remove_families(pairs: list[Pair]) -> list[Pair]:
    """Keep one package of each family (foo, foo-data, libfoo-dev), so that a query has one right answer.

    The shortest name stays: it is mostly the program itself. Sorted by package name.
    """
    pairs = sorted(pairs, key=lambda pair: (len(pair.id), pair.id))
    pairs = first_of_each(pairs, lambda pair: normalise(re.split(" --? ", pair.query)[0]))
    print(f"{len(pairs):6} different synopses, not counting an ending like ' - development files'")
    pairs = first_of_each(pairs, lambda pair: normalise(pair.answer))
    print(f"{len(pairs):6} different descriptions")
    pairs = first_of_each(pairs, lambda pair: normalise(pair.answer.split("\n")[0]))
    print(f"{len(pairs):6} different first paragraphs")
    pairs = first_of_near_duplicates(pairs)
    print(f"{len(pairs):6} descriptions of which no two share {MAX_OVERLAP:.0%} of the shorter one")
    return sorted(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Debian retrieval data.")
    parser.add_argument("--output_dir", type=Path, default=Path("data/debian"))
    parser.add_argument("--language", default="en", help="of the descriptions, as Debian writes it: de, fr, pt_BR")
    parser.add_argument(
        "--keep_near_duplicates",
        action="store_true",
        help="remove exact duplicates only; 2,000 descriptions are held out, and searched for among all of them",
    )
    args = parser.parse_args()

    index = read_index(args.language)
    print(f"index SHA-256 {hashlib.sha256(index.encode()).hexdigest()}")
    pairs = parse_index(index, args.language)
    english = pairs if args.language == "en" else parse_index(read_index("en"), "en")
    pairs = remove_short_and_boilerplate(pairs, english)
    if args.keep_near_duplicates:
        pairs = first_of_each(pairs, lambda pair: f"{pair.query}\n{pair.answer}")
        print(f"{len(pairs):6} different pairs")
        parts = split_by_answer(pairs, validation=1_000, test=2_000)
    else:
        pairs = remove_families(pairs)
        sizes = SIZES if args.language == "en" else SIZES_OF_TRANSLATIONS
        parts = split(pairs, **sizes)
    write_split(args.output_dir, parts)


if __name__ == "__main__":
    main()
