"""Damage files and values at random, and run a command: it answers rightly, or says in one line what is wrong.

The parts of `make campaign` that kill nothing; scripts/campaign.py draws from them. Each case runs in a process of its own,
with what a user would type. It is survived if the command

- ends within a minute, without a traceback, and without running what a file says;
- ends with status 0 and a right answer (the undamaged one, where the damage must not change it; else finite numbers and
  known texts), or with one line that names the file, the folder or the value;
- leaves the user's files as they were.
"""

import bz2
import copy
import gzip
import hashlib
import json
import lzma
import math
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from publishing import EVALUATION, RETRIEVAL, SENTIMENT
from training_run import WORDS, context, write_pairs

from tinybert_hf.cli import main

SECONDS = 60  # after which a command hangs
MEMORY = 24 * 2**30  # address space of a command
RECORDS = 600  # of the index
CHUNKS = [f"{' '.join(WORDS[n : n + 3])} {n}" for n in range(12)]
SECRET = "s3cr3t-0f-th3-us3r"
OWNED = "OWNED"

# Values that no file should hold at that place.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 1_000, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.5, 1e308, 1e-300),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "nan", "\x00", "\ud800", "é" * 3, "x" * 100_000),
    *("../../../etc/passwd", "/dev/zero", "/proc/self/environ", "http://127.0.0.1:9/x", "owner/kernel", "{{ 7 * 7 }}"),
    *("evil/repo--evil.Evil", "evil.Evil", "relu", "bert", "tinybert", "TinyBertModel", "float16", "int8", "cls"),
    *([], [[]], [1, 2], ["a", None], {}, {"a": None}, {"a": {"b": [1]}}, [[[[[[[[1]]]]]]]]),
]
# What a command line may hold at any place.
WORDS_OF_A_SHELL = [
    *("", " ", "-", "--", "0", "-1", "1", "2", "4294967296", "9" * 30, "1e9", "nan", "inf", "1.5", "x", "x" * 5_000),
    *("é",),
    *("\udcff", "None", "true", "[]", "{}", "null", "{", '{"section": "s1"}', '{"section": {"$gt": 1}}'),
    *('{"n": 1e999}',),
    *('{"section": []}', '{"n": {">=": "a"}}', '{"nothing": 1}', '{"id": "1"}', "[" * 3_000, '{"n": NaN}'),
    *("..", "/", "/dev/null", "/proc/self/mem", "/root/x/y", "~nobody/x", "owner/name", "owner/name/more", "C:\\x"),
    *("http://", "http://127.0.0.1:1/c", "http://[::1", "http://127.0.0.1:99999/c", "https://u:p@127.0.0.1:1/a b"),
    *("http://127.0.0.1:1/c?shards=x", "ftp://x/y", "s3://bucket/x", "file:///etc/passwd", "memory://x", "$(touch x)"),
]


@dataclass
class Case:
    """A folder with what a user has in `own`, what was done to it, and what is run."""

    folder: Path
    random: random.Random
    root: Path  # of the undamaged inputs
    what: str = ""
    commands: list[list[str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # one of them must be in the message
    check: Callable[[str], str | None] = lambda out: None  # what is wrong with an answer

    @property
    def own(self) -> Path:
        return self.folder / "own"

    @property
    def made(self) -> Path:
        """Where a command may write."""
        return self.folder / "made"

    def copy(self, name: str) -> Path:
        source = self.root / name
        copied = shutil.copytree(source, self.own / name) if source.is_dir() else shutil.copy(source, self.own / name)
        self.names.append(name)
        return Path(copied)

    def run(self, *argv: object) -> None:
        self.commands.append([str(part) for part in argv])


def execute(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """In the child: the commands one after the other, until one fails."""
    import datasets

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    for argv in commands:
        main(argv)


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder, links by where they lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != ".lock"
    }


def finish(case: Case) -> str | None:
    """Run the commands of a case; what is wrong with how they end."""
    before = digest(case.own)
    process = context.Process(target=execute, args=(case.commands, case.folder))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"nothing after {SECONDS} s"
    said = (case.folder / "err").read_text(errors="replace") if (case.folder / "err").exists() else "?"
    out = (case.folder / "out").read_text(errors="replace") if (case.folder / "out").exists() else ""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if process.exitcode not in (0, 1, 2) or "Traceback" in said:
        return f"status {process.exitcode}, {said[-900:]}"
    if (case.folder / "canary").exists():
        return "code of a file was run"
    if digest(case.own) != before:
        return f"other files: {sorted(set(digest(case.own).items()) ^ set(before.items()))}"[:500]
    if process.exitcode == 0:
        return case.check(out)
    if not last.startswith("error: ") or not any(name in last for name in case.names):
        return f"the message names none of {case.names}: {last[:500]}"
    return None


# ---- What is damaged ----


def other_bytes(rng: random.Random, content: bytes, end: int | None = None) -> tuple[str, bytes]:
    """Cut, emptied, with other bytes before `end`, or with more."""
    changed = bytearray(content)
    place = rng.randrange(max(1, len(content) if end is None else min(end, len(content))))
    how = rng.choice(["cut", "emptied", "a bit", "bytes", "zeros", "longer"])
    if how == "a bit" and content:
        changed[place] ^= 1 << rng.randrange(8)
    elif how in ("bytes", "zeros"):
        length = min(rng.choice([1, 16, 512]), (end or len(content)) - place)
        changed[place : place + length] = bytes(length) if how == "zeros" else rng.randbytes(length)
    elif how == "longer":
        changed += rng.randbytes(rng.choice([1, 100]))
    return f"{how} at {place}", {"cut": bytes(changed[:place]), "emptied": b""}.get(how, bytes(changed))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def other_value(rng: random.Random, content: Any, deep: bool = True) -> tuple[str, Any]:
    """The content with another value at one place, without one, or with one under another name."""
    content = copy.deepcopy(content)
    container, key = rng.choice(places(content) if deep else [(content, key) for key in content])
    how = rng.choice(["value"] * 6 + ["gone", "renamed", "more"])
    value = rng.choice(VALUES)
    if not deep and isinstance(container, list):
        key = rng.randrange(len(container))
    if how == "gone":
        del container[key]
    elif how == "renamed" and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif how == "more" and isinstance(container, dict):
        container[
            rng.choice(["auto_map", "_attn_implementation", "quantization_config", "x", "prompts", "tokenizer_file"])
        ] = value
    else:
        container[key] = value
    return f"{key}: {how} {value!r:.60}", content


def damage_json(rng: random.Random, path: Path) -> str:
    """Another value, as most damage by hand, or other bytes, as by a machine."""
    content = path.read_bytes()
    how = rng.choice(["value"] * 6 + ["bytes", "bytes", "utf-16", "byte order mark", "in a list", "deep", "removed"])
    if how == "value":
        said, value = other_value(rng, json.loads(content), deep=rng.random() < 0.5)
        how, content = said, json.dumps(value).encode()
    elif how == "bytes":
        how, content = other_bytes(rng, content)
    elif how == "removed":
        path.unlink()
        return f"{path.name} removed"
    else:
        text = content.decode()
        content = {
            "utf-16": text.encode("utf-16"),
            "byte order mark": text.encode("utf-8-sig"),
            "in a list": f"[{text}]".encode(),
            "deep": b"[" * 100_000 + b"]" * 100_000,
        }[how]
    path.write_bytes(content)
    return f"{path.name}, {how}"


# ---- What is right ----


def finite_hits(out: str, known: Sequence[str]) -> str | None:
    """What is wrong with the JSON lists of a search, one a line."""
    for line in out.splitlines():
        hits = json.loads(line)
        if wrong := [hit for hit in hits if hit["text"] not in known or not math.isfinite(hit["score"])]:
            return f"no answer: {wrong[:2]}"
    return None


def same_hits(out: str, expected: str) -> str | None:
    """What is wrong with an answer that must be the undamaged one; half precision may round."""
    ours, theirs = ([json.loads(line) for line in text.splitlines()] for text in (out, expected))
    if len(ours) != len(theirs):
        return f"{len(ours)} answers, not {len(theirs)}"
    for mine, wanted in zip(ours, theirs, strict=True):
        if [hit["text"] for hit in mine] != [hit["text"] for hit in wanted]:
            return f"another answer in silence: {mine} is not {wanted}"[:700]
        if any(abs(a["score"] - b["score"]) > 5e-3 for a, b in zip(mine, wanted, strict=True)):
            return f"other scores in silence: {mine} is not {wanted}"[:700]
    return None


def searching(case: Case, model: Path) -> list[object]:
    return ["search", "--model", model, "--query", "music photo", "--chunks", case.root / "chunks.txt", "--json"]


def use_model(case: Case, model: Path) -> None:
    """Any command that reads a model; a search most often, since its answer is looked at."""
    data = case.root / "records.jsonl"
    other: list[list[object]] = [
        ["index", "build", "--index", case.made / "index", "--model", model, "--data", data, "--id_column", "id"],
        ["publish", "--model", model, "--output_dir", case.made / "built"],
        [
            *(
                "train",
                "retrieval",
                "--data",
                case.root / "pairs.csv",
                "--model",
                model,
                "--output_dir",
                case.made / "run",
            ),
            *("--max_steps", 1, "--eval_size", 32, "--per_device_train_batch_size", 8, "--report_to", "none"),
        ],
    ]
    if case.random.random() < 0.7:
        case.run(*searching(case, model))
        case.check = lambda out: finite_hits(out, CHUNKS)
    else:
        case.run(*case.random.choice(other))


# ---- The parts ----


def config(case: Case) -> None:
    model = case.copy(case.random.choice(["tiny", "tiny", "bert", "classifier"]))
    before = json.loads((model / "config.json").read_text())
    case.what = f"{model.name}, {damage_json(case.random, model / 'config.json')}"
    use_model(case, model)
    try:
        same = json.loads((model / "config.json").read_text()) == before
    except (ValueError, OSError, RecursionError):
        same = False
    if same and case.commands[0][0] == "search":
        expected = (case.root / f"{model.name}.expected").read_text()
        case.check = lambda out: same_hits(out, expected)


def tokenizer(case: Case) -> None:
    model = case.copy(case.random.choice(["tiny", "bert"]))
    file = model / case.random.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    case.what = f"{model.name}, {damage_json(case.random, file)}"
    use_model(case, model)


def weights(case: Case) -> None:
    """Lying headers and other tensors. A changed bit of a number is not noticed: nothing in a model's folder tells it."""
    rng, model = case.random, case.copy(case.random.choice(["tiny", "bert"]))
    path = model / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = rng.choice(["header"] * 4 + ["tensors"] * 4 + ["bytes", "bytes", "length", "another file", "shards"])
    if how == "header":
        said, header = other_value(rng, header)
        how, text = f"header {said}", json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + data
    elif how == "tensors":
        how, content = other_tensors(rng, header, data)
    elif how == "bytes":
        said, content = other_bytes(rng, content, end=8 + size)
        how = f"bytes of the header, {said}"
    elif how == "length":
        content = struct.pack("<Q", rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])) + content[8:]
    elif how == "another file":
        path.unlink()
        trap = Trap(rng.choice(CALLS)(case.folder / "canary"))
        (model / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings.tokens.weight": trap}, protocol=2))
    else:
        path.unlink()
        where = rng.choice(
            ["model.safetensors", "../../chunks.txt", "/etc/passwd", "", None, 5, ["x"], "none.safetensors"]
        )
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {name: where for name in header if name != "__metadata__"},
        }
        (model / "model.safetensors.index.json").write_text(
            json.dumps(rng.choice([index, {"weight_map": where}, [], {}]))
        )
    if path.exists():
        path.write_bytes(content)
    case.what = f"{model.name}, {how}"
    use_model(case, model)
    expected = (case.root / f"{model.name}.expected").read_text()
    if case.commands[0][0] == "search" and not how.endswith(("I32", "BOOL")):  # those are other numbers
        case.check = lambda out: same_hits(out, expected)


def other_tensors(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[str, bytes]:
    """One tensor is not there, or of another name, shape or type, or not finite; or there is one more."""
    tensors = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    name = rng.choice(sorted(name for name in tensors if "pooler" not in name))  # nobody reads a BERT's pooler
    dtype, shape, numbers = tensors[name]
    how = rng.choice(
        ["gone", "all gone", "renamed", "one more", "flat", "wider", "I32", "BOOL", "F64", "empty", "nan", "inf"]
    )
    if how == "gone":
        del tensors[name]
    elif how == "all gone":
        tensors.clear()
    elif how == "renamed":
        tensors[f"{name}.x"] = tensors.pop(name)
    elif how == "one more":
        tensors["more"] = tensors[name]
    elif how in ("nan", "inf"):
        tensors[name] = dtype, shape, struct.pack("<f", float(how)) + numbers[4:]
    elif how == "I32":
        tensors[name] = how, shape, numbers
    else:
        count = len(numbers) // 4
        kind, new = {
            "flat": (dtype, [1, *shape, 1]),
            "wider": (dtype, [shape[0] + 1, *shape[1:]]),
            "empty": (dtype, [0]),
            "BOOL": (how, shape),
            "F64": (how, shape),
        }[how]
        width = {"BOOL": 1, "F64": 8}.get(kind, 4)
        tensors[name] = kind, new, (numbers * 8)[: math.prod(new) * width] if count else b""
    header, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    for one, (kind, new, part) in tensors.items():
        header[one] = {"dtype": kind, "shape": new, "data_offsets": [end, end + len(part)]}
        end += len(part)
        parts.append(part)
    text = json.dumps(header).encode()
    return f"{name} {how}", struct.pack("<Q", len(text)) + text + b"".join(parts)


def index_searches(address: object) -> list[list[object]]:
    search: list[object] = ["index", "search", "--index", address, "--query", "music photo", "--json"]
    filtered = [*search, "--filter", '{"section": ["s1", "s3"], "n": {">=": 5}}']
    return [search, [*search, "--mode", "bm25"], [*search, "--mode", "hybrid"], filtered]


def index(case: Case) -> None:
    folder = case.copy("index")
    file = case.random.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"))
    if case.random.random() < 0.2:
        how = "removed"
        file.unlink()
    else:
        how, content = other_bytes(case.random, file.read_bytes())
        file.write_bytes(content)
    case.what = f"{file.relative_to(folder)} {how}"
    for argv in index_searches(folder):
        case.run(*argv)
    expected = (case.root / "index.expected").read_text()
    case.check = lambda out: same_hits(out, expected)


class Trap:
    """Unpickling it calls something."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


CALLS: list[Callable[[Path], tuple[Any, ...]]] = [
    lambda canary: (os.system, (f"touch {canary}",)),
    lambda canary: (eval, (f"open({str(canary)!r}, 'w')",)),
    lambda canary: (exec, (f"open({str(canary)!r}, 'w')",)),
    lambda canary: (open, (str(canary), "w")),
    lambda canary: (os.mkdir, (str(canary),)),
    lambda canary: (shutil.copy, ("/etc/hostname", str(canary))),
    lambda canary: (getattr(__import__("subprocess"), "check_output"), (["touch", str(canary)],)),  # noqa: B009
    lambda canary: (getattr(__import__("runpy"), "run_path"), (str(canary.with_name("evil.py")),)),  # noqa: B009
    lambda canary: (Path.touch, (canary,)),
]


def trapped(rng: random.Random, value: Any, trap: Any) -> Any:
    """A value with a trap at one place of it."""
    how = rng.choice(["alone", "in a list", "in a dict", "beside", "beneath"])
    return {
        "alone": trap,
        "in a list": [trap],
        "in a dict": {"x": trap},
        "beside": {"model": value, "x": trap},
        "beneath": {"model": {**value, "x": trap}} if isinstance(value, dict) else trap,
    }[how]


def write_pickle(rng: random.Random, content: Any, path: Path) -> str:
    import torch

    how = rng.choice(["zip", "legacy", *range(6)])
    if isinstance(how, int):
        path.write_bytes(pickle.dumps(content, protocol=how))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    return str(how)


def write_evil(case: Case) -> None:
    (case.folder / "evil.py").write_text(f"open({str(case.folder / 'canary')!r}, 'w')\n")


def converting(case: Case, write: Callable[[Path], str]) -> None:
    """`tinybert convert` of a file that a child writes: the campaign itself imports no torch."""
    case.copy("tokenizer-wiki.json")
    path = case.own / "model.pt"
    case.names.append(path.name)
    process = context.Process(target=write, args=(path,))
    process.start()
    process.join()
    case.what = (path.with_name("what")).read_text() if path.with_name("what").exists() else "?"
    case.run("convert", path, case.own / "tokenizer-wiki.json", case.made / "converted", "--num_attention_heads", 4)
    case.run(*searching(case, case.made / "converted"))
    case.names.append("converted")
    case.check = lambda out: finite_hits(out.partition("\n")[2], CHUNKS)


@dataclass
class HostilePickle:
    seed: int
    canary: Path

    def __call__(self, path: Path) -> str:
        rng = random.Random(self.seed)
        which = rng.randrange(len(CALLS))
        content = trapped(rng, original(), Trap(CALLS[which](self.canary)))
        how = write_pickle(rng, content, path)
        path.with_name("what").write_text(f"call {which}, {how}")
        return how


@dataclass
class OddTensors:
    seed: int

    def __call__(self, path: Path) -> str:
        import torch

        warnings.simplefilter("ignore")  # of torch, that some kinds of tensors are going
        rng = random.Random(self.seed)
        state = original()
        name = rng.choice(sorted(state))
        old = state[name]
        odd: dict[str, Callable[[], Any]] = {
            "sparse": old.to_sparse,
            "meta": lambda: old.to("meta"),
            "complex": lambda: old.to(torch.complex64),
            "whole numbers": lambda: old.to(torch.int64),
            "half": old.half,
            "bfloat16": old.bfloat16,
            "double": old.double,
            "float8": lambda: old.to(torch.float8_e4m3fn),
            "quantized": lambda: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8),
            "stride 0": lambda: torch.zeros(1).expand(2_000_000_000, 24),
            "one number": lambda: torch.ones(1),
            "no dimension": lambda: torch.tensor(1.0),
            "empty": lambda: torch.ones(0, 24),
            "hidden size 0": lambda: torch.ones(5, 0),
            "four dimensions": lambda: torch.ones(1, 1, *old.shape),
            "transposed": lambda: old.t() if old.dim() == 2 else old,
            "nan": lambda: old * float("nan"),
            "inf": lambda: old + float("inf"),
            "nested": lambda: torch.nested.nested_tensor([old.flatten(), old.flatten()[:3]]),
            "parameter": lambda: torch.nn.Parameter(old),
            "a list": old.tolist,
            "none": lambda: None,
            "a text": lambda: "x",
            "gone": lambda: None,
        }
        how = rng.choice(sorted(odd))
        state[name] = odd[how]()
        if how == "gone":
            del state[name]
        if rng.random() < 0.2:
            key: Any = rng.choice([5, (1, 2), None, b"x", "", "encoder.encoders.99999.attention.q.weight"])
            state[key] = old
            how += f", a key {key!r}"
        torch.save({"model": state}, path)
        path.with_name("what").write_text(f"{name} {how}")
        return how


def original() -> dict[str, Any]:
    from test_convert_original import SMALL, original_state_dict

    sizes: dict[str, Any] = SMALL
    return {**original_state_dict(**sizes)}


def pickles(case: Case) -> None:
    write_evil(case)
    converting(case, HostilePickle(case.random.randrange(2**32), case.folder / "canary"))


def tensors(case: Case) -> None:
    converting(case, OddTensors(case.random.randrange(2**32)))


# ---- Data files ----

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def rows_of_data(rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n in range(60):
        words = rng.sample(WORDS, 6)
        text = f"{' '.join(words)} {n}"
        row = {"id": f"r{n}", "query": " ".join(words[:2]), "answer": text, "text": text, "label": WORDS[n % 2], "n": n}
        rows.append(row)
    return rows


def write_rows(rng: random.Random, rows: list[dict[str, Any]], kind: str, path: Path) -> bytes:
    """The bytes of a file of a kind; the libraries write what text alone does not."""
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind in (".parquet", ".xlsx"):
        try:
            frame = pd.DataFrame(rows, columns=names)
            frame.to_parquet(path) if kind == ".parquet" else frame.to_excel(path, index=False)
            return path.read_bytes()
        except Exception:  # what the format cannot hold is no damage
            return path.read_bytes() if path.exists() else b""
    if kind == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == ".json":
        text = json.dumps(rng.choice([rows, {"data": rows}, {"version": 1, "data": [{"x": 1, "paragraphs": rows}]}]))
    elif kind == ".txt":
        text = "".join(f"{row.get('text')}\n" for row in rows)
    else:
        separator = "\t" if kind == ".tsv" else rng.choice([",", ",", ";", "|"])
        lines = [names, *([row.get(name, "") for name in names] for row in rows)]
        text = "".join(separator.join(str(cell) for cell in line) + rng.choice(["\n", "\n", "\r\n"]) for line in lines)
    encoding = rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


def data(case: Case) -> None:
    rng, rows = case.random, rows_of_data(case.random)
    kind = rng.choice([".csv", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx", ".txt"])
    packed = rng.choice(["", "", "", *COMPRESS]) if kind not in (".parquet", ".xlsx") else ""
    said = ["sound"]
    for _ in range(rng.choice([0, 1, 1, 2])):
        row = rng.choice(rows)
        name = rng.choice(list(row))
        value = rng.choice([*VALUES, 'a "b', '"', "a,b;c\td", "a\nb", "=1+1", "\u2028", "word" * 30_000, "2020-01-01"])
        everywhere = rng.random() < 0.3
        for one in rows if everywhere else [row]:
            one[name] = value
        said.append(f"{name}={value!r:.40}{' everywhere' if everywhere else ''}")
    if rng.random() < 0.15:
        for row in rows:
            row.pop(rng.choice(["id", "text", "query", "label"]), None)
        said.append("columns missing")
    path = case.own / f"mine{rng.choice(['', ' with blanks', '[1]'])}{kind}"
    content = COMPRESS[packed](write_rows(rng, rows, kind, path))
    if rng.random() < 0.4:
        how, content = other_bytes(rng, content)
        said.append(how)
    if rng.random() < 0.05:
        said, content = ["deep"], b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    path.unlink(missing_ok=True)
    wrong_name = rng.choice([".csv", ".json", ".parquet", ".xlsx", ".txt"]) if rng.random() < 0.08 else ""
    path = path.with_name(path.name + wrong_name + packed)
    path.write_bytes(content)
    case.names += [path.name, "The id ", "--eval_data"]  # the value and the flag, where the file is as it should be
    columns = ["--id_column", "id"] if rng.random() < 0.6 else []
    columns += ["--metadata_columns", "n", "label"] if rng.random() < 0.6 else []
    small = [*("--max_steps", 1, "--eval_size", 8, "--per_device_train_batch_size", 4, "--report_to", "none")]
    into = ["--output_dir", case.made / "run", "--model", case.root / "tiny"]
    commands: list[list[object]] = [
        [*("index", "build", "--index", case.made / "index", "--model", case.root / "tiny", "--data", path), *columns],
        [*("train", "retrieval", "--data", path), *small, *into],
        [*("train", "sentiment", "--data", path), *small, *into],
        [*("evaluate", "--model", case.root / "tiny", "--data", path)],
        [*("mine", "--data", path, "--output_file", case.made / "mined.jsonl", "--num_negatives", 1)],
        [*("search", "--model", case.root / "tiny", "--query", "music", "--chunks", path, "--json")],
    ]
    case.run(*rng.choice([commands[0], *commands]))
    case.what = f"{path.name}: {', '.join(said)}; {' '.join(case.commands[0][:2])}"


def options(case: Case) -> None:
    """A wrong word at one place of a right command line."""
    rng, index = case.random, case.copy("index")
    search = ["--top_k", "3", "--rerank", "2", "--query", "music photo", "--json"]
    commands: list[list[object]] = [
        [
            "index",
            "search",
            "--index",
            index,
            *search,
            "--mode",
            "bm25",
            "--filter",
            '{"section": "s1"}',
            "--token",
            "a:b",
        ],
        ["index", "search", "--index", index, *search, "--filter", '{"n": {">=": 5}}', "--mode", "dense"],
        ["index", "info", "--index", index],
        ["search", *search, "--model", case.root / "tiny", "--chunks", case.root / "chunks.txt", "--encoding", "utf-8"],
        [
            *("index", "build", "--index", case.made / "i", "--model", case.root / "tiny", "--truncate_dim", "8"),
            *("--data", case.root / "records.jsonl", "--id_column", "id", "--metadata_columns", "section", "n"),
            *("--text_column", "text", "--data_split", "train", "--encoding", "utf-8", "--separator", ","),
        ],
    ]
    argv = [str(part) for part in rng.choice(commands)]
    while "--token" in argv and rng.random() < 0.8:  # of a server, and this is a folder
        del argv[argv.index("--token") :]
    place = rng.randrange(2, len(argv))
    case.what = f"{argv[place - 1]} {argv[place]:.30}"
    argv[place] = rng.choice(WORDS_OF_A_SHELL)
    case.what = f"{' '.join(argv[:2])}: {case.what} -> {argv[place]:.60}"
    case.names = ["error: "]  # the value, the flag or the folder, whatever is wrong with them
    case.run(*argv)
    if "search" in argv[:2] and "--json" in argv:
        texts = [
            *CHUNKS,
            *(json.loads(line)["text"] for line in (case.root / "records.jsonl").read_text().splitlines()),
        ]
        case.check = lambda out: finite_hits(out, texts)


# ---- Publishing ----


def publishing(case: Case, model: Path) -> Path:
    case.run("publish", "--model", model, "--output_dir", case.made / "built")
    return case.made / "built"


def summaries(case: Case) -> None:
    model = case.copy("trained")
    file = model / case.random.choice(
        ["retrieval_summary.json", "sentiment_summary.json", "evaluation_beir.json", "examples.json"]
    )
    case.what = damage_json(case.random, file)
    built = publishing(case, model)
    case.check = lambda out: card_problem(built)


def card_problem(built: Path) -> str | None:
    """What is wrong with a card: metadata that somebody else set, or words of a stranger outside of code."""
    import yaml
    from markdown_it import MarkdownIt

    text = (built / "README.md").read_text(encoding="utf-8")
    head, body = re.fullmatch(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    known = {
        "license",
        "language",
        "base_model",
        "datasets",
        "library_name",
        "pipeline_tag",
        "tags",
        "model-index",
        "widget",
    }
    metadata = yaml.safe_load(head)
    if metadata.keys() - known or metadata["library_name"] != "transformers" or "tinybert" not in metadata["tags"]:
        return f"metadata: {head[:500]}"
    above = ""
    for token in MarkdownIt("commonmark").enable("table").parse(body):
        for one in [token, *(token.children or [])]:
            if one.type in ("html_block", "html_inline", "link_open", "image") and OWNED in one.content + str(
                one.attrs
            ):
                return f"{one.type}: {one.content[:200]} {one.attrs}"
        if above == "heading_open" and OWNED in token.content:
            return f"a heading: {token.content[:200]}"
        above = token.type
        if token.type == "fence" and token.info == "bash":
            words = shlex.shlex(token.content.replace("\\\n", " "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            if OWNED in [*words]:
                return f"a command of its own: {token.content[:500]}"
    return None


HOSTILE = [
    *(f"x`; touch {OWNED}", f"x\n\n# {OWNED}", f"x\n```\n# {OWNED}\n", f"<b>{OWNED}</b>", f"[{OWNED}](http://x)"),
    *(f"x | {OWNED} |",),
    *(f"---\nlicense: {OWNED}\n---", f"x: {{a: {OWNED}}}", f"{{{{ '{OWNED}' }}}}", f"$(touch {OWNED})"),
    *(f"' ; touch {OWNED} ; '",),
    *(f"``{OWNED}``", f"![{OWNED}](http://x)", f"x\\`{OWNED}", f"\u2028# {OWNED}", f"&lt;{OWNED}&gt;"),
    *(f'x"\n- {OWNED}: &a', f"a\r\n\r\n## {OWNED}"),
    *(f"\n    {OWNED} x\n", f"<!-- {OWNED} -->", f"~~~\n{OWNED}\n~~~", f"# {OWNED}\n===", f"\x1b[31m{OWNED}"),
    *(f"<script>{OWNED}</script>",),
]


def card(case: Case) -> None:
    """A hostile text where a summary or an evaluation has one."""
    model = case.copy("trained")
    file = model / case.random.choice(["retrieval_summary.json", "sentiment_summary.json", "evaluation_beir.json"])
    content = json.loads(file.read_text())
    container, key = case.random.choice(
        [
            (a, k)
            for a, k in places(content)
            if isinstance(a[k], str) or (isinstance(a[k], (float, dict)) and isinstance(k, str))
        ]
    )
    hostile = case.random.choice(HOSTILE)
    if isinstance(container[key], str) or container[key] is None:
        container[key] = hostile
    else:
        container[hostile] = container.pop(key)
    case.what = f"{file.name}, {key}: {hostile!r}"
    file.write_text(json.dumps(content))
    built = publishing(case, model)
    case.check = lambda out: card_problem(built)


STRAY = [
    *(".env", ".netrc", "id_rsa", "notes.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "merges.txt", "generation_config.json", "preprocessor_config.json", "modeling_tinybert.py"),
    *("evil.py",),
    *("configuration_tinybert.py", "pipeline_tinybert.py", "pytorch_model.bin", "training_args.bin"),
    *("adapter_config.json",),
    *("README.md", "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.model"),
    *("model.safetensors.index.json", ".git/config", "1_Pooling/config.json", "onnx/model.onnx", "runs/log"),
    *("sub/evil.py",),
    *("additional_chat_templates/x.jinja", "checkpoint-3/model.safetensors", ".cache/x", "processor_config.json"),
]


def taken_along(case: Case) -> None:
    """A secret in a file, behind a link or under a key that nobody reads."""
    rng, model = case.random, case.copy(case.random.choice(["trained", "tiny", "classifier"]))
    secret = case.own / "secret"
    secret.write_text(json.dumps({"a": SECRET}))
    if rng.random() < 0.3:
        file = model / rng.choice(["config.json", "tokenizer_config.json"])
        key = rng.choice(
            [
                "secret",
                "auto_map",
                "custom_pipelines",
                "chat_template",
                "_name_or_path",
                "name_or_path",
                "task_specific_params",
            ]
        )
        key = rng.choice([key, "quantization_config", "generation_config", "tokenizer_file", "transformers_version"])
        value = rng.choice([SECRET, {"a": SECRET}, {"AutoTokenizer": [None, f"{SECRET}/x--evil.Evil"]}, [SECRET]])
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        case.what = f"{file.name}, {key}={value!r}"
    else:
        file = model / rng.choice(STRAY)
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        how = rng.choice(["file", "link", "folder"])
        if how == "file":
            shutil.copy(secret, file)
        elif how == "link":
            file.symlink_to(secret)
        else:
            file.mkdir()
            shutil.copy(secret, file / "x.json")
        case.what = f"{model.name}, {file.relative_to(model)} as a {how}"
    built = publishing(case, model)
    own_card = file.name == "README.md"  # a README.md of the user is kept, as promised

    def check(out: str) -> str | None:
        for path in built.rglob("*"):
            if path.is_symlink():
                return f"the link {path.name}"
            if (
                path.is_file()
                and SECRET in path.read_text(errors="replace")
                and not (own_card and path.name == "README.md")
            ):
                return f"the secret is in {path.relative_to(built)}"
            ours = Path(__file__).parents[1] / "tinybert_hf" / path.name
            if path.suffix == ".py" and path.read_bytes() != ours.read_bytes():
                return f"code of a stranger: {path.relative_to(built)}"
        return None

    case.check = check


# ---- The inputs ----


def write_inputs(root: Path) -> None:
    """In a child: models, an index, and data, all sound."""
    import torch
    from transformers import BertConfig, BertModel

    from tinybert_hf import TinyBertConfig, TinyBertForSequenceClassification, TinyBertModel
    from tinybert_hf.index import SearchIndex
    from tinybert_hf.index.folder import FolderStore
    from tinybert_hf.tokenization import save_tokenizer, train_tokenizer

    rng = random.Random(0)
    write_pairs(root / "pairs.csv", 200, seed=0)
    (root / "chunks.txt").write_text("\n".join(CHUNKS) + "\n")
    records: list[dict[str, Any]] = [
        {"id": str(n), "text": f"{' '.join(rng.sample(WORDS, 8))} {n}", "section": f"s{n % 5}", "n": n}
        for n in range(RECORDS)
    ]
    (root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = [record["text"] for record in records]
    trained = train_tokenizer([*texts, *CHUNKS], 300, 32)
    sizes: dict[str, Any] = {"vocab_size": len(trained), "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 32}
    torch.manual_seed(0)
    own = TinyBertConfig(**sizes, residual_initializer_range=0.1)
    models: dict[str, Any] = {
        "tiny": TinyBertModel(own),
        "classifier": TinyBertForSequenceClassification(own),
        "bert": BertModel(BertConfig(**sizes, pad_token_id=3)),
        "trained": TinyBertModel(own),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        save_tokenizer(trained, root / name)
    for name, content in (
        ("retrieval_summary", RETRIEVAL),
        ("sentiment_summary", SENTIMENT),
        ("evaluation_beir", EVALUATION),
    ):
        (root / "trained" / f"{name}.json").write_text(json.dumps(content))
    examples = [{"query": text[:12], "answer": text} for text in texts[:4]]
    (root / "trained" / "examples.json").write_text(json.dumps(examples))
    FolderStore.ann_threshold = 100  # so that there is a vector index to damage
    SearchIndex(root / "index", root / "tiny").add(records)
    write_original_tokenizer(root / "tokenizer-wiki.json")


def write_original_tokenizer(path: Path) -> None:
    from test_convert_original import original_tokenizer

    original_tokenizer().save(str(path))


def undamaged(root: Path, name: str, commands: Sequence[Sequence[object]]) -> None:
    """Write down what the commands answer where nothing is damaged."""
    case = Case(root / "undamaged", random.Random(0), root)
    case.own.mkdir(parents=True)
    for argv in commands:
        case.run(*argv)
    if wrong := finish(case):
        raise SystemExit(f"{name}, undamaged: {wrong}")
    if not (case.folder / "out").read_text():
        raise SystemExit(f"{name}, undamaged: {(case.folder / 'err').read_text()}")
    (root / f"{name}.expected").write_bytes((case.folder / "out").read_bytes())
    shutil.rmtree(case.folder)


@dataclass
class Damage:
    """A part of the campaign: as its `Part`, with several cases for each seed, since they take a second."""

    name: str
    damage: Callable[[Case], None]
    cases: int  # of a draw: about as many as the first campaign had, in proportion
    survived: int = 0
    failed: list[str] = field(default_factory=list)

    def prepare(self, root: Path) -> None:
        """Make the inputs, once for all parts."""
        inputs = root / "sound"
        if inputs.exists():
            return
        inputs.mkdir()
        process = context.Process(target=write_inputs, args=(inputs,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("The inputs could not be made.")
        for name in ("tiny", "bert", "classifier"):
            case = Case(inputs, random.Random(0), inputs)
            undamaged(inputs, name, [searching(case, inputs / name)])
        undamaged(inputs, "index", index_searches(inputs / "index"))

    def draw(self, root: Path, seed: int) -> None:
        for number in range(self.cases):
            folder = root / f"case-{seed}-{number}"
            case = Case(folder, random.Random(f"{self.name} {seed} {number}"), root / "sound")
            case.own.mkdir(parents=True)
            case.made.mkdir()
            self.damage(case)
            if wrong := finish(case):
                self.failed.append(f"seed {seed}, case {number}, {case.what}: {wrong}")
            else:
                self.survived += 1
            shutil.rmtree(folder)


def build_damages() -> list[Damage]:
    return [
        Damage("a model's config.json, damaged", config, 12),
        Damage("a model's tokenizer, damaged", tokenizer, 4),
        Damage("a model's weights, damaged", weights, 4),
        Damage("a file of an index, damaged", index, 8),
        Damage("convert, a hostile pickle", pickles, 4),
        Damage("convert, odd tensors", tensors, 3),
        Damage("data files, damaged", data, 14),
        Damage("options and addresses, wrong", options, 10),
        Damage("a summary or evaluation, damaged", summaries, 6),
        Damage("a model card, hostile names", card, 4),
        Damage("a built folder, secrets beside the model", taken_along, 5),
    ]
