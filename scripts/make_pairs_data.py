"""Make retrieval data from a file of pairs that you have: split by answer, in the layout of retrieval_data.py.

    python scripts/make_pairs_data.py --data squad.jsonl.gz --output_dir outputs/data/squad

The file is JSON lines, perhaps compressed with gzip, with a query and an answer a line. Pairs with one answer stay on
one side of the split; the test searches for the held-out answers among all of them.
"""

import argparse
import gzip
import json
from pathlib import Path

from retrieval_data import Pair, first_of_each, split_by_answer, write_split


def read_pairs(path: Path, query_column: str, answer_column: str) -> list[Pair]:
    """Raises ValueError if a line is no JSON, or has not both columns."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    for flag, column in (("query_column", query_column), ("answer_column", answer_column)):
        if missing := [number for number, row in enumerate(rows, 1) if column not in row]:
            raise ValueError(
                f"{path} has no {column!r} in line {missing[0]}, which has {', '.join(rows[missing[0] - 1])}. Pass --{flag}."
            )
    width = len(str(len(rows)))  # so that ids sort as the rows do
    return [
        Pair(f"{number:0{width}}", row[query_column].strip(), row[answer_column].strip())
        for number, row in enumerate(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make retrieval data from a file of pairs.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--query_column", default="query")
    parser.add_argument("--answer_column", default="answer")
    parser.add_argument("--validation", type=int, default=500, help="answers to hold out while training")
    parser.add_argument("--test", type=int, default=1_000, help="answers to hold out for the test")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    try:
        pairs = read_pairs(args.data, args.query_column, args.answer_column)
        print(f"{len(pairs):6} pairs")
        pairs = first_of_each(pairs, lambda pair: pair.query)
        print(f"{len(pairs):6} different queries")
        split = split_by_answer(pairs, args.validation, args.test)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_split(args.output_dir, split)


if __name__ == "__main__":
    main()
