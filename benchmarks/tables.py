"""The tables of docs/results.md, written from the JSON files of benchmarks/results.

    python -m benchmarks.tables            # write them
    python -m benchmarks.tables --check    # say whether they are up to date, and change nothing

docs/results.md is written by hand, but for what stands between `<!-- table: NAME -->` and `<!-- end -->`. This command
replaces that by the table of benchmarks/results/NAME.json. A result is a JSON object with these names, all of them:

    title      what the table shows
    command    list of the commands that made it
    machine    what it ran on, with the versions that matter
    date       of the run
    source     the run's own JSON, or what else the numbers were taken from
    log        list of links to entries of the log, as docs/results.md has them: "../log/quality.md#words-five-sets"
    columns    heading -> decimals of its numbers; null for a column of text
    rows       list of objects: heading -> cell. A heading that is left out is an empty cell
    notes      list of sentences in Markdown, shown below the table

A cell is a text, a number, or a number with its spread:

    {"value": 0.87, "plus_minus": 0.017}               half of a 95% interval: 0.870 ±0.017
    {"value": 10.3, "low": 10.3, "high": 10.4}         median, lowest and highest run: 10.3 (10.3 to 10.4)
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "results.md"

NAMES = ("title", "command", "machine", "date", "source", "log", "columns", "rows", "notes")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def read_result(path: Path) -> dict[str, Any]:
    """A result, checked.

    Raises: ValueError: if it is not as the head of this file says.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    if set(result) != set(NAMES):
        odd = sorted(set(result) ^ set(NAMES))
        raise ValueError(f"{path} must have the names {', '.join(NAMES)}; missing or unknown: {', '.join(odd)}.")
    columns = result["columns"]
    for number, row in enumerate(result["rows"], start=1):
        for heading, cell in row.items():
            if heading not in columns:
                raise ValueError(f"{path}, row {number}: there is no column {heading!r}.")
            if not isinstance(cell, str) and columns[heading] is None:
                raise ValueError(f"{path}, row {number}: {heading!r} holds texts, got {cell!r}.")
    return result


def format_cell(cell: Any, decimals: int | None) -> str:
    """A cell as the table shows it.

    >>> format_cell({"value": 0.87, "plus_minus": 0.017}, 3)
    '0.870 ±0.017'
    >>> format_cell({"value": 5, "low": 4, "high": 1200}, 1), format_cell(None, 1), format_cell("no", None)
    ('5.0 (4.0 to 1,200.0)', '', 'no')
    """
    if cell is None or isinstance(cell, str):
        return cell or ""

    def number(value: float) -> str:
        return f"{value:,.{decimals or 0}f}"

    if not isinstance(cell, Mapping):
        return number(cell)
    value = number(cell["value"])
    if "plus_minus" in cell:
        return f"{value} ±{number(cell['plus_minus'])}"
    return f"{value} ({number(cell['low'])} to {number(cell['high'])})"


def render(result: Mapping[str, Any]) -> str:
    """A result as Markdown: the table, its notes, the log, and what can be unfolded: commands and machine."""
    columns = result["columns"]
    lines = [columns, ["---"] * len(columns)]
    lines += [[format_cell(row.get(heading), columns[heading]) for heading in columns] for row in result["rows"]]
    parts = [f"**{result['title']}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    if result["notes"]:
        parts.append("\n".join(f"- {note}" for note in result["notes"]))
    links = ", ".join(f"[{link.partition('#')[2].replace('-', ' ')}]({link})" for link in result["log"])
    parts.append(f"{result['date']}. Log: {links}.")
    parts.append("<details><summary>Commands and machine</summary>")
    if result["command"]:
        parts.append("\n".join(["```text", *result["command"], "```"]))
    parts.append(f"Machine: {result['machine']}. Source: {result['source']}.\n\n</details>")
    return "\n\n".join(parts)


def fill(text: str, folder: Path = RESULTS) -> str:
    """The document with the tables of the results that it names.

    Raises: ValueError: if a result is not as the head of this file says.
    """

    def table(marked: re.Match[str]) -> str:
        return f"{marked[1]}{render(read_result(folder / f'{marked[2]}.json'))}\n{marked[4]}"

    return MARKED.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; the status is 1 where it is stale")
    check = parser.parse_args().check
    before = DOCUMENT.read_text(encoding="utf-8")
    after = fill(before)
    if check and after != before:
        sys.exit(f"{DOCUMENT.relative_to(ROOT)} is stale. Run: python -m benchmarks.tables")
    if not check:
        DOCUMENT.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
