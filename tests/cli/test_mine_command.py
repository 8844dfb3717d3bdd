"""The mine command writes pairs with their negatives, and says how to train with them.

python -m pytest tests/cli/test_mine_command.py -q
"""

from pathlib import Path

import pytest
from command_line import tinybert

from tinybert_hf.data import load_data

PAIRS = [
    ("music player", "play music from the command line"),
    ("music library", "sort music and play it at night"),
    ("archive tool", "read and write compressed archives"),
    ("photo album", "manage photos and draw pictures"),
    ("mail client", "send and receive electronic mail"),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{query}\t{answer}\n" for query, answer in [("query", "answer"), *PAIRS]))
    return path


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz", "mined.parquet"])
def test_the_command_writes_what_it_says(name: str, pairs: Path) -> None:
    out = pairs.parent / "new" / name
    done = tinybert("mine", "--data", pairs, "--output_file", out, "--num_negatives", "2")
    assert done.status == 0, done.err
    assert f"5 rows with 2 negatives each, by BM25: {out}" in done.out
    columns = ["negative_0", "negative_1"]
    assert done.out.strip().endswith(f"Train with: --data {out} --negative_columns {' '.join(columns)}")
    rows = load_data(str(out))
    assert rows.column_names == ["query", "answer", *columns]
    assert sorted(rows["query"]) == sorted(query for query, _ in PAIRS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_file", "mined.txt"], "--output_file must end in"),
        (["--output_file", "mined.jsonl", "--model", "/no/where"], "There is no model '/no/where'"),
        (["--output_file", "mined.jsonl", "--query_column", "q"], "no column 'q'; it has query, answer"),
        (["--output_file", "mined.jsonl", "--margin", "2"], "margin must be from 0 to 1, got 2"),
    ],
)
def test_the_command_ends_with_a_message(flags: list[str], message: str, pairs: Path) -> None:
    done = tinybert("mine", "--data", pairs, *flags)
    assert (done.status, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
