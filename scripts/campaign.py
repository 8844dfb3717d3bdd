"""Kill, damage, run again, and compare: whether what docs/promises.md promises still holds.

make campaign MINUTES=10
PYTHONPATH=tests python -m scripts.campaign --draws 3 --seed 7      # three draws of each part, the same every time

Each draw has a seed, which is printed where it fails; `--draws 1 --seed SEED` repeats it. The moments of the kills depend
on the machine too.
"""

import argparse
import hashlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training_run import TINY, WORDS, context, run_command, write_pairs

ROWS = 1_500  # of the index: several batches
BATCH = 256


def run(argv: Sequence[object], log: Path) -> None:
    """In the child: what `tinybert ...` does, with an index that is written in small batches."""
    import tinybert_hf.index

    tinybert_hf.index.BATCH = BATCH
    run_command([str(part) for part in argv], log, {})


class Draw:
    """One draw: a folder of its own, and random numbers that its seed decides."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.folder = root / f"draw-{seed}"
        self.folder.mkdir()
        self.log = self.folder / "log"

    def run(self, argv: Sequence[object], kill_after: float | None = None) -> int | None:
        """The status of `tinybert ARGV`, killed after so many seconds, if it takes as long."""
        self.log.unlink(missing_ok=True)
        process = context.Process(target=run, args=(argv, self.log))
        process.start()
        process.join(kill_after)
        if kill_after is not None:
            process.kill()
        process.join()
        return process.exitcode

    def killed_and_run_again(self, argv: Sequence[object], seconds: float) -> str | None:
        """What is wrong after one to three kills and one run to the end."""
        for _ in range(self.random.randint(1, 3)):
            self.run(argv, self.random.uniform(0, seconds))
        return self.finished(argv)

    def finished(self, argv: Sequence[object]) -> str | None:
        return None if self.run(argv) == 0 else f"did not end well: {self.log.read_text()[-500:]}"


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- The parts ----


def training(draw: Draw) -> list[object]:
    return [
        *("train", "retrieval", "--data", draw.root / "pairs.csv", "--eval_size", 32, "--config_overrides", TINY),
        *("--per_device_train_batch_size", 8, "--max_steps", 24, "--save_steps", 4, "--report_to", "none"),
        *("--resume_from_checkpoint", "auto", "--output_dir", draw.folder / "out"),
    ]


def trained(draw: Draw) -> dict[str, str]:
    left = [path.name for path in (draw.folder / "out").glob("unfinished-*")]
    weights = {name: value for name, value in digest(draw.folder / "out").items() if name.endswith(".safetensors")}
    return weights | {"left over": str(left)}


def damaged(draw: Draw, argv: Sequence[object], seconds: float) -> str | None:
    """A file of the last checkpoint is removed, cut, emptied or changed by a bit; the run goes on from the one before."""
    out = draw.folder / "out"
    if wrong := draw.finished(argv):
        return wrong
    for path in out.iterdir():  # as if the run had been killed after its last checkpoint
        if not path.name.startswith("checkpoint-"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = max(out.iterdir(), key=lambda path: int(path.name.partition("-")[2]))
    file = draw.random.choice(sorted(path for path in last.iterdir() if path.suffix != ".py"))
    content = bytearray(file.read_bytes())
    how = draw.random.choice(["removed", "cut", "emptied", "changed"])
    if how == "removed":
        file.unlink()
    else:
        if how == "changed":
            content[draw.random.randrange(len(content))] ^= 1 << draw.random.randrange(8)
        size = {"cut": draw.random.randrange(len(content)), "emptied": 0, "changed": len(content)}[how]
        file.write_bytes(content[:size])
    if len(list(out.iterdir())) > 1:
        return draw.finished(argv)
    status, said = draw.run(argv), draw.log.read_text()  # the last one was the best: there is no other
    if status == 1 and "is not whole" in said and "Traceback" not in said:
        shutil.rmtree(out)
        return draw.finished(argv)
    return f"{file.name} {how}: status {status}, {said[-500:]}"


def index(draw: Draw) -> list[object]:
    return [
        *("index", "build", "--index", draw.folder / "index", "--model", draw.root / "model"),
        *("--data", draw.root / "records.jsonl", "--id_column", "id", "--metadata_columns", "section"),
    ]


def indexed(draw: Draw) -> Any:
    from tinybert_hf.index import SearchIndex

    built = SearchIndex(draw.folder / "index")
    ids = [str(row) for row in range(ROWS)]
    texts = {row["id"]: row["text"] for row in built.store.rows([("id", "in", ids)], ["text"])}
    found = [[hit["id"] for hit in built.search(text, 5)] for text in ("parse an archive", "music", "text editor")]
    return len(built), hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest(), found


def two_builds(draw: Draw, argv: Sequence[object], seconds: float) -> str | None:
    """Two builds of the same records at once, the second a moment later."""
    first = context.Process(target=run, args=(argv, draw.folder / "log-of-the-first"))
    first.start()
    time.sleep(draw.random.uniform(0, seconds / 2))
    wrong = draw.finished(argv)
    first.join()
    return wrong or (None if first.exitcode == 0 else (draw.folder / "log-of-the-first").read_text()[-500:])


def publish(draw: Draw) -> list[object]:
    return ["publish", "--model", draw.root / "model", "--output_dir", draw.folder / "built"]


def published(draw: Draw) -> dict[str, str]:
    left = [path.name for path in draw.folder.glob("unfinished-*")]
    built = {name: value for name, value in digest(draw.folder / "built").items() if "README" not in name}
    built.pop(".build.json")  # it names the README.md, which names the folder
    return built | {"left over": str(left)}


@dataclass
class Part:
    """What is run, how it is disturbed, and what must be as without a disturbance."""

    name: str
    argv: Callable[[Draw], list[object]]
    result: Callable[[Draw], Any]
    disturb: Callable[[Draw, Sequence[object], float], str | None] = Draw.killed_and_run_again
    seconds: float = 0.0
    expected: Any = None
    survived: int = 0
    failed: list[str] = field(default_factory=list)

    def prepare(self, root: Path) -> None:
        """Run it undisturbed."""
        draw = Draw(root, -1)
        started = time.perf_counter()
        if wrong := draw.finished(self.argv(draw)):
            raise SystemExit(f"{self.name} {wrong}")
        self.seconds, self.expected = time.perf_counter() - started, self.result(draw)
        shutil.rmtree(draw.folder)

    def draw(self, root: Path, seed: int) -> None:
        draw = Draw(root, seed)
        wrong = self.disturb(draw, self.argv(draw), self.seconds)
        if not wrong and (found := self.result(draw)) != self.expected:
            wrong = f"{found} is not {self.expected}"
        if wrong:
            self.failed.append(f"seed {seed}: {wrong}")
        else:
            self.survived += 1
        shutil.rmtree(draw.folder)


def build_parts() -> list[Part]:
    return [
        Part("training, kill -9", training, trained),
        Part("training, a damaged checkpoint", training, trained, damaged),
        Part("index build, kill -9", index, indexed),
        Part("index build, two at once", index, indexed, two_builds),
        Part("publish to a folder, kill -9", publish, published),
    ]


def write_inputs(root: Path) -> None:
    """Pairs to train on, records to index, and a model."""
    write_pairs(root / "pairs.csv", 200, seed=0)
    rng = random.Random(0)
    records = [
        f'{{"id": {row}, "text": "{" ".join(rng.sample(WORDS, 8))} {row}", "section": "s{row % 5}"}}'
        for row in range(ROWS)
    ]
    (root / "records.jsonl").write_text("\n".join(records) + "\n")
    draw = Draw(root, -9)
    if wrong := draw.finished(training(draw)):
        raise SystemExit(f"The model {wrong}")
    (draw.folder / "out").rename(root / "model")
    shutil.rmtree(draw.folder)


def campaign(seed: int, draws: int | None, minutes: float) -> list[Part]:
    """Draw from each part in turn: so many times, or for so long."""
    until = time.perf_counter() + 60 * minutes
    with TemporaryDirectory(prefix="campaign-") as scratch:
        root = Path(scratch)
        write_inputs(root)
        parts = build_parts()
        for part in parts:
            part.prepare(root)
        round = 0
        while round < draws if draws is not None else time.perf_counter() < until:
            for part in parts:
                part.draw(root, seed + round)
            round += 1
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long to draw")
    parser.add_argument("--draws", type=int, help="draw each part so many times, instead of for some minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw; those after it count up")
    arguments = parser.parse_args(argv)
    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"})
    parts = campaign(arguments.seed, arguments.draws, arguments.minutes)
    print("| what | tried | survived |\n|---|---|---|")
    for part in parts:
        print(f"| {part.name} | {part.survived + len(part.failed)} | {part.survived} |")
    for part in parts:
        for failure in part.failed:
            print(f"\n{part.name}, {failure}")
    return int(any(part.failed for part in parts))


if __name__ == "__main__":
    sys.exit(main())
