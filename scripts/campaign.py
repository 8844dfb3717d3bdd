"""Kill, damage, run again, and compare: whether what docs/promises.md promises still holds.

make campaign MINUTES=10
PYTHONPATH=tests python -m scripts.campaign --draws 3 --seed 7      # three draws of each part, the same every time
PYTHONPATH=tests python -m scripts.campaign --only "push|sync"      # the parts whose names match

The parts that kill nothing, but damage files and values, are in scripts/damage.py.

Each draw has a seed, which is printed where it fails; `--draws 1 --seed SEED` repeats it. The moments of the kills depend
on the machine too.
"""

import argparse
import hashlib
import os
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loopback_hub import WRITE_TOKEN, Cut, LoopbackHub
from training_run import TINY, WORDS, context, environments, run_command, write_pairs

from .damage import Damage, build_damages

ROWS = 1_500  # of the index: several batches
BATCH = 256
REPO = "tester/tiny"
SILENCE = 1  # seconds after which a request has failed


def run(argv: Sequence[object], log: Path, environment: dict[str, str], hub: str | None, largest: int | None) -> None:
    """In the child: what `tinybert ...` does, with an index that is written in small batches.

    Args:
        hub: the address of the Hub; what is pushed there is not loaded back.
        largest: bytes of a file beyond which writing fails, as on a full disk.
    """
    import huggingface_hub.constants
    import huggingface_hub.utils._http

    import tinybert_hf.hub
    import tinybert_hf.index
    import tinybert_hf.publish.push

    tinybert_hf.index.BATCH = BATCH
    if hub:  # these were read when the process was prepared
        huggingface_hub.constants.ENDPOINT = hub
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE = hub + "/{repo_id}/resolve/{revision}/{filename}"
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        huggingface_hub.constants.HF_HUB_CACHE = str(log.parent / "hub_cache")
        huggingface_hub.utils._http.time.sleep = lambda seconds: None  # it would wait before it asks again
        tinybert_hf.hub.SECONDS_OF_SILENCE = SILENCE
        tinybert_hf.publish.push.load_back = lambda *_: None
        environment = environment | {"HF_TOKEN": WRITE_TOKEN}
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    run_command([str(part) for part in argv], log, environment)


class Draw:
    """One draw: a folder of its own, and random numbers that its seed decides."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.folder = root / f"draw-{seed}"
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.num_processes = 1
        self.hub: LoopbackHub | None = None
        self.exit = ExitStack()

    def run(self, argv: Sequence[object], kill_after: float | None = None, largest: int | None = None) -> int | None:
        """The status of `tinybert ARGV`; one of its processes is killed after so many seconds, if it takes as long."""
        self.log.unlink(missing_ok=True)
        hub = self.hub.url if self.hub else None
        processes = [
            context.Process(target=run, args=(argv, self.log, environment, hub, largest))
            for environment in environments(self.num_processes)
        ]
        for process in processes:
            process.start()
        if kill_after is not None:
            victim = self.random.choice(processes)
            victim.join(kill_after)
            victim.kill()
            for process in processes:
                process.join(30)  # those that are left end by themselves
                process.kill()
        for process in processes:
            process.join()
        return max((process.exitcode or 0 for process in processes), key=abs)

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
    out = Path(shutil.copytree(draw.root / "model", draw.folder / "out"))  # what the same command has made
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


def training_by_two(draw: Draw) -> list[object]:
    draw.num_processes = 2
    return training(draw)


def disk_full(draw: Draw, argv: Sequence[object], seconds: float) -> str | None:
    """Files cannot grow beyond a size, which is said in one line; then they can, and the same command ends well."""
    largest = int(10 ** draw.random.uniform(2, 5))
    status, said = draw.run(argv, largest=largest), draw.log.read_text() if draw.log.exists() else ""
    if status not in (0, 1) or "Traceback" in said:
        return f"files of {largest} bytes: status {status}, {said[-700:]}"
    return draw.finished(argv)


def mining(draw: Draw) -> list[object]:
    found = draw.folder / "mined.jsonl"
    return ["mine", "--data", draw.root / "pairs.csv", "--model", draw.root / "model", "--output_file", found]


def mined(draw: Draw) -> dict[str, str]:
    return {name: value for name, value in digest(draw.folder).items() if name != "log"}


def syncing(draw: Draw) -> list[object]:
    return ["index", "sync", draw.folder / "index", draw.root / "documents", "--model", draw.root / "model"]


def synced(draw: Draw) -> Any:
    from tinybert_hf.index import SearchIndex

    built = SearchIndex(draw.folder / "index")
    rows = built.store.rows([("file_sha256", ">=", "")], ["text", "file"])
    return len(built), sorted((row["id"], row["text"], row["file"]) for row in rows)


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
    first = context.Process(target=run, args=(argv, draw.folder / "log-of-the-first", {}, None, None))
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


def publish_all(draw: Draw) -> list[object]:
    return [*publish(draw), "--onnx", "--space", "tester/demo"]


def published_all(draw: Draw) -> dict[str, str]:
    page = digest(draw.folder / "built-space")
    page.pop(".build.json")
    return published(draw) | {f"space/{name}": value for name, value in page.items()}


def pushing(draw: Draw) -> list[object]:
    draw.hub = draw.exit.enter_context(LoopbackHub())
    return ["publish", "--model", draw.root / "model", "--repo_id", REPO]


def pushed(draw: Draw) -> Any:
    assert draw.hub
    files = {name: hashlib.sha256(content).hexdigest() for name, content in draw.hub.files(REPO).items()}
    return len(draw.hub.commits(REPO)), files


def broken_hub(draw: Draw, argv: Sequence[object], seconds: float) -> str | None:
    """The Hub fails, cuts a connection or is silent at some requests, once or for long; then it answers."""
    assert draw.hub
    method, times = draw.random.choice(["GET", "POST", "PUT"]), draw.random.choice([1, 50])
    where = draw.random.choice(["", "commit", "lfs", "preupload", "create"])
    action: int | Cut = draw.random.choice([500, 503, "request", "response", "silence"])
    if isinstance(action, int):
        draw.hub.fail_next(method, where, action, times)
    else:
        draw.hub.drop_next(method, where, times, action)
    status, said = draw.run(argv), draw.log.read_text()
    if status not in (0, 1) or "Traceback" in said:
        return f"{action} at {method} {where}, {times} times: status {status}, {said[-700:]}"
    draw.hub._faults.clear()
    return draw.finished(argv)


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
        draw.exit.close()
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
        draw.exit.close()
        shutil.rmtree(draw.folder)


def build_parts() -> list[Part]:
    return [
        Part("training, kill -9", training, trained),
        Part("training with two processes, kill -9", training_by_two, trained),
        Part("training, a damaged checkpoint", training, trained, damaged),
        Part("training, disk full", training, trained, disk_full),
        Part("mining, kill -9", mining, mined),
        Part("index build, kill -9", index, indexed),
        Part("index build, two at once", index, indexed, two_builds),
        Part("index build, disk full", index, indexed, disk_full),
        Part("index sync, kill -9", syncing, synced),
        Part("publish to a folder, kill -9", publish, published),
        Part("publish to a folder, disk full", publish, published, disk_full),
        Part("push, kill -9", pushing, pushed),
        Part("push, a broken Hub", pushing, pushed, broken_hub),
        Part("publish with ONNX and Space, kill -9", publish_all, published_all),
    ]


def write_inputs(root: Path) -> None:
    """Pairs to train on, records and documents to index, and a model."""
    write_pairs(root / "pairs.csv", 200, seed=0)
    rng = random.Random(0)
    records = [
        f'{{"id": {row}, "text": "{" ".join(rng.sample(WORDS, 8))} {row}", "section": "s{row % 5}"}}'
        for row in range(ROWS)
    ]
    (root / "records.jsonl").write_text("\n".join(records) + "\n")
    (root / "documents").mkdir()
    for number in range(60):
        paragraphs = (" ".join(rng.sample(WORDS, 10)) for _ in range(8))
        (root / "documents" / f"{number}.md").write_text(f"# Page {number}\n\n" + "\n\n".join(paragraphs) + "\n")
    draw = Draw(root, -9)
    if wrong := draw.finished(training(draw)):
        raise SystemExit(f"The model {wrong}")
    (draw.folder / "out").rename(root / "model")
    shutil.rmtree(draw.folder)


def campaign(seed: int, draws: int | None, minutes: float, only: str = "") -> list[Part | Damage]:
    """Draw from each part in turn, or from those whose names match `only`: so many times, or for so long."""
    until = time.perf_counter() + 60 * minutes
    with TemporaryDirectory(prefix="campaign-") as scratch:
        root = Path(scratch)
        write_inputs(root)
        parts = [part for part in [*build_parts(), *build_damages()] if re.search(only, part.name)]
        for part in parts:
            part.prepare(root)
        for round in count() if draws is None else range(draws):
            for part in parts:
                if draws is None and time.perf_counter() > until:
                    return parts
                part.draw(root, seed + round)
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long to draw")
    parser.add_argument("--draws", type=int, help="draw each part so many times, instead of for some minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw; those after it count up")
    parser.add_argument("--only", default="", help="a regular expression: the parts whose names match it")
    arguments = parser.parse_args(argv)
    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"})
    parts = campaign(arguments.seed, arguments.draws, arguments.minutes, arguments.only)
    print("| what | tried | survived |\n|---|---|---|")
    for part in parts:
        print(f"| {part.name} | {part.survived + len(part.failed)} | {part.survived} |")
    for part in parts:
        for failure in part.failed:
            print(f"\n{part.name}, {failure}")
    return int(any(part.failed for part in parts))


if __name__ == "__main__":
    sys.exit(main())
