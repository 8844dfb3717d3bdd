"""The two homes of a SearchIndex beside faiss: time to build, queries a second at recall 0.99, memory and disk.

    python -m benchmarks.index --sizes 10000 100000 --dimensions 768 128
    python -m benchmarks.index --sizes 1000000 --dimensions 768 --engines folder faiss
    python -m benchmarks.index --kill --sizes 1000000 --dimensions 768

The vectors are of real text, as uniform random ones defeat every index. 20,000 words of the bundled Debian descriptions
(training and test, 28,000 texts) get vectors by singular value decomposition of their positive pointwise mutual
information in a description (Levy and Goldberg 2014), weighted by inverse document frequency; a passage is a random span
of 8 to 40 words of a description, its vector the sum of its words', less the mean, scaled to length 1. 128 dimensions are
the first of the 768. Queries are the test set's synopses, embedded in the same way.

Every row runs in a process of its own, a server's in a server of its own (`make interop` installs Milvus 2.3.5). Queries
go one at a time; the settings are the first of a list, each searching further, that reach a recall of 0.99 at 10 (a
result counts if its score is no lower than the tenth best). Rows are kept in `--scratch` as they come: run again, the
command goes on with those that are missing, and prints all.

`--kill` fills an index, ends the process with SIGKILL when half is stored, fills it again, counts, compares ids and
searches.
"""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import BenchmarkArguments, parse_arguments, peak_mib, report, run_alone, table
from tinybert_hf.data import load_data
from tinybert_hf.index import SearchIndex

WIDTH = 768
VOCABULARY = 20_000
PART = 50_000  # vectors in memory at a time
TOP_K = 10
RECALL = 0.99
SECONDS = 20  # to measure the queries of one setting
SERVER = Path(".interop-milvus/bin/python")


# ---- Vectors ----


def make_vectors(scratch: Path, size: int) -> None:
    """`vectors.npy` (size or more, 768) and `queries.npy`, fp32; made once."""
    path = scratch / "vectors.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= size:
        return
    import scipy.sparse as sp
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.utils.extmath import randomized_svd

    texts = load_data("data/debian/train.jsonl.gz")["answer"][:] + load_data("data/debian/test/corpus.jsonl")["text"][:]
    words = CountVectorizer(max_features=VOCABULARY, token_pattern=r"\w+", binary=True)
    presence = words.fit_transform(texts).astype(np.float32)  # (texts, words)
    frequency = np.asarray(presence.sum(axis=0)).ravel()
    together = (presence.T @ presence).tocoo()
    expected = frequency[together.row] * frequency[together.col] / len(texts)
    information = np.log(together.data / expected)
    kept = information > 0
    ppmi = sp.csr_matrix((information[kept], (together.row[kept], together.col[kept])), shape=together.shape)
    left, values, _ = randomized_svd(ppmi, WIDTH, n_iter=2, random_state=0)
    word_vectors = left * np.sqrt(values) * np.log(len(texts) / frequency)[:, None]
    word_vectors = word_vectors.astype(np.float32)

    analyze = words.build_analyzer()
    known = [
        np.array([words.vocabulary_[word] for word in analyze(text) if word in words.vocabulary_], np.int32)
        for text in texts
    ]
    known = [ids for ids in known if len(ids) >= 8]
    generator = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(scratch / "vectors.part.npy", mode="w+", dtype=np.float32, shape=(size, WIDTH))
    mean = None
    for start in range(0, size, PART):
        rows = min(PART, size - start)
        spans = [span(known[i], generator) for i in generator.integers(len(known), size=rows)]
        lengths = np.cumsum([0, *map(len, spans)])
        flat = np.concatenate(spans)
        sums = sp.csr_matrix((np.ones(len(flat), np.float32), flat, lengths), (rows, len(word_vectors))) @ word_vectors
        mean = sums.mean(axis=0) if mean is None else mean
        vectors[start : start + rows] = unit_rows(sums - mean)
    vectors.flush()
    queries = words.transform(load_data("data/debian/test/queries.jsonl")["text"][:]).astype(np.float32)
    np.save(scratch / "queries.npy", unit_rows(queries @ word_vectors - mean))
    (scratch / "vectors.part.npy").rename(path)


def span(ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """8 to 40 words in a row."""
    length = min(int(generator.integers(8, 41)), len(ids))
    start = generator.integers(0, len(ids) - length + 1)
    return ids[start : start + length]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def read_parts(scratch: Path, size: int, dimension: int) -> Iterator[np.ndarray]:
    """The vectors in parts, read and not mapped, so that a process' memory is its engine's."""
    with (scratch / "vectors.npy").open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        for start in range(0, size, PART):
            rows = min(PART, size - start)
            part = np.fromfile(file, np.float32, rows * WIDTH).reshape(rows, WIDTH)
            yield part if dimension == WIDTH else unit_rows(part[:, :dimension])


def read_queries(scratch: Path, dimension: int) -> np.ndarray:
    return unit_rows(np.load(scratch / "queries.npy")[:, :dimension])


def records(scratch: Path, size: int, dimension: int) -> Iterator[dict[str, Any]]:
    rows = (row for part in read_parts(scratch, size, dimension) for row in part)
    return ({"id": i, "text": f"passage {i}", "embedding": row} for i, row in enumerate(rows))


def best_scores(scratch: Path, size: int, dimension: int) -> np.ndarray:
    """(queries, TOP_K) exact scores, best first."""
    queries = read_queries(scratch, dimension)
    best = np.full((len(queries), TOP_K), -np.inf, np.float32)
    for part in read_parts(scratch, size, dimension):
        found = np.concatenate([best, queries @ part.T], axis=1)
        best = -np.sort(np.partition(-found, TOP_K, axis=1)[:, :TOP_K], axis=1)
    return best


# ---- Engines ----


def measure_queries(
    scratch: Path,
    dimension: int,
    tenth: np.ndarray,
    settings: Sequence[Any],
    apply: Callable[[Any], None],
    search: Callable[[np.ndarray], list[list[float]]],
) -> dict[str, Any]:
    """The first setting that reaches the recall, or the best there is.

    Args:
        tenth: (queries,) exact score of the tenth best.
        apply: makes a setting count.
        search: (N, D) queries -> for each the scores of its results.
    """
    queries = read_queries(scratch, dimension)
    result: dict[str, Any] = {}
    for setting in settings:
        apply(setting)
        search(queries[:2])
        started = time.perf_counter()
        recalls: list[float] = []
        for query, lowest in zip(queries, tenth, strict=True):
            (scores,) = search(query[None])
            recalls.append(sum(score >= lowest - 1e-4 for score in scores) / TOP_K)
            if time.perf_counter() - started > SECONDS and len(recalls) >= 20:
                break
        rate = len(recalls) / (time.perf_counter() - started)
        recall = min(float(np.mean(recalls)), 1.0)
        if not result or recall > result["recall"]:
            result = {"setting": setting, "queries/s": rate, "recall": recall}
        if recall >= RECALL:
            break
    batch = queries[:100]
    apply(result["setting"])
    started = time.perf_counter()
    search(batch)
    return result | {"batch queries/s": len(batch) / (time.perf_counter() - started)}


def run_faiss(kind: str, scratch: Path, size: int, dimension: int, tenth: np.ndarray) -> dict[str, Any]:
    import faiss

    index: Any
    library: Any = faiss  # its annotations have one signature of several
    inner = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        index = faiss.IndexFlatIP(dimension)
    elif kind == "HNSW":
        index = faiss.IndexHNSWFlat(dimension, 32, inner)
    else:
        index = library.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, 32, inner)
    started = time.perf_counter()
    for part in read_parts(scratch, size, dimension):
        if not index.is_trained:
            index.train(part)
        index.add(part)
    seconds = time.perf_counter() - started

    def apply(ef: int) -> None:
        if kind != "flat":
            index.hnsw.efSearch = ef

    settings = [0] if kind == "flat" else [16, 32, 64, 128, 256, 512]
    found = measure_queries(scratch, dimension, tenth, settings, apply, lambda q: index.search(q, TOP_K)[0].tolist())
    return {"build s": seconds, **found, "peak MiB": peak_mib(), "disk MiB": 0.0}


def run_folder(kind: str, scratch: Path, size: int, dimension: int, tenth: np.ndarray) -> dict[str, Any]:
    with TemporaryDirectory(dir=scratch) as folder:
        index = SearchIndex(Path(folder) / "index")
        home: Any = index.store
        if kind == "IVF_FLAT":
            from lancedb.index import IvfFlat

            home.ann = IvfFlat(distance_type="dot")
        home.ann_threshold = sys.maxsize if kind == "exact" else 0
        started = time.perf_counter()
        index.add(records(scratch, size, dimension))
        seconds = time.perf_counter() - started

        def apply(nprobes: int) -> None:
            home.nprobes = nprobes

        settings = [1] if kind == "exact" else [8, 16, 32, 64, 128, 256, 512]
        found = measure_queries(scratch, dimension, tenth, settings, apply, scores_of(index))
        return {"build s": seconds, **found, "peak MiB": peak_mib(), "disk MiB": index.info()["bytes"] / 2**20}


def run_milvus(kind: str, scratch: Path, size: int, dimension: int, tenth: np.ndarray) -> dict[str, Any]:
    with milvus(scratch) as (address, process, folder):
        index = SearchIndex(address)
        home: Any = index.store
        home.ann_threshold = sys.maxsize if kind == "exact" else 0
        if kind == "IVF_SQ8":
            home.ann_type, home.ann = "IVF_SQ8", {"nlist": 1024}
        started = time.perf_counter()
        index.add(records(scratch, size, dimension))
        seconds = time.perf_counter() - started

        def apply(effort: int) -> None:
            home.effort = {"nprobe" if kind == "IVF_SQ8" else "ef": effort}

        settings = [16] if kind == "exact" else [16, 32, 64, 128, 256, 512]
        if kind == "HNSW":
            settings += [1_024, 2_048, 4_096, 8_192]
        found = measure_queries(scratch, dimension, tenth, settings, apply, scores_of(index))
        files = [path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file()]
        return {"build s": seconds, **found, "peak MiB": server_peak_mib(process), "disk MiB": sum(files) / 2**20}


def scores_of(index: SearchIndex) -> Callable[[np.ndarray], list[list[float]]]:
    return lambda queries: [[hit["score"] for hit in hits] for hits in index.search(None, TOP_K, embeddings=queries)]


@contextmanager
def milvus(scratch: Path) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A server of its own: its address, process, and folder."""
    if not SERVER.is_file():
        raise FileNotFoundError(f"The benchmark's server needs {SERVER.parent.parent}: run `make interop`.")
    with TemporaryDirectory(dir=scratch) as name, open(Path(name) / "log", "w") as log:
        process = subprocess.Popen(
            [SERVER, "tests/milvus_server.py", "milvus", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin and process.stdout
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"Milvus did not start: {(Path(name) / 'log').read_text()[-1000:]}")
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(name)
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def server_peak_mib(process: psutil.Process) -> float:
    peaks = [Path(f"/proc/{child.pid}/status").read_text() for child in process.children(recursive=True)]
    return sum(int(status.split("VmHWM:")[1].split()[0]) / 2**10 for status in peaks if "VmHWM" in status)


ENGINES: dict[str, dict[str, Callable[..., dict[str, Any]]]] = {
    "folder": {kind: partial(run_folder, kind) for kind in ("exact", "IVF_FLAT", "IVF_RQ")},
    "milvus": {kind: partial(run_milvus, kind) for kind in ("exact", "HNSW", "IVF_SQ8")},
    "faiss": {kind: partial(run_faiss, kind) for kind in ("flat", "HNSW", "HNSW, SQ8")},
}
QUANTISED = ("IVF_RQ", "IVF_SQ8", "HNSW, SQ8")


def call(engine: str, kind: str, *arguments: Any) -> dict[str, Any]:
    return ENGINES[engine][kind](*arguments)


# ---- Killed and filled again ----


def fill(address: str, scratch: Path, size: int, dimension: int) -> None:
    SearchIndex(address).add(records(scratch, size, dimension))


def kill_and_resume(address: str, scratch: Path, size: int, dimension: int) -> list[list[str]]:
    """Lines of a table: what happened, and how long it took.

    Raises: RuntimeError: if a record is lost or there twice.
    """
    lines = []
    started = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(address, scratch, size, dimension))
    process.start()
    while len(SearchIndex(address)) < size // 2:
        if not process.is_alive():
            raise RuntimeError("The first build ended before it could be killed.")
        time.sleep(0.2)
    process.kill()
    process.join()
    stored = len(SearchIndex(address))
    lines.append([f"killed with {stored:,} of {size:,} stored", f"{time.perf_counter() - started:.0f} s"])
    started = time.perf_counter()
    index = SearchIndex(address)
    added = index.add(records(scratch, size, dimension))
    lines.append(
        [f"run again: {added.added:,} added, {added.present:,} there", f"{time.perf_counter() - started:.0f} s"]
    )
    started = time.perf_counter()
    found = sum(
        len(index.store.rows([("id", "in", [str(i) for i in range(start, min(start + PART // 5, size))])], []))
        for start in range(0, size, PART // 5)
    )
    if not len(index) == found == size:
        raise RuntimeError(f"{len(index):,} records and {found:,} different ids of {size:,}.")
    lines.append([f"{size:,} records with {found:,} different ids", f"{time.perf_counter() - started:.0f} s"])
    tenth = best_scores(scratch, size, dimension)[:, -1]
    result = measure_queries(scratch, dimension, tenth, ["default"], lambda _: None, scores_of(index))
    lines.append([f"searched, recall {result['recall']:.4f}", f"{result['queries/s']:.0f} queries/s"])
    return lines


# ---- The command ----


@dataclass
class IndexBenchmark(BenchmarkArguments):
    """Both homes beside faiss."""

    sizes: list[int] = field(default_factory=lambda: [10_000, 100_000], metadata={"help": "Numbers of vectors."})
    dimensions: list[int] = field(default_factory=lambda: [768, 128], metadata={"help": "Their widths."})
    engines: list[str] = field(default_factory=lambda: list(ENGINES), metadata={"help": "Of folder, milvus, faiss."})
    scratch: str = field(
        default="outputs/benchmarks/index", metadata={"help": "Folder for the vectors and for the rows so far."}
    )
    again: bool = field(default=False, metadata={"help": "Measure also the rows that are there already."})
    kill: bool = field(default=False, metadata={"help": "Kill a build in the middle, and go on, instead."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.engines) - set(ENGINES):
            raise ValueError(f"--engines must be of {', '.join(ENGINES)}, got {', '.join(sorted(unknown))}.")
        if not all(1 <= dimension <= WIDTH for dimension in self.dimensions) or min(self.sizes) < TOP_K:
            raise ValueError(f"--dimensions must be from 1 to {WIDTH}, and --sizes {TOP_K} or more.")


def main() -> None:
    arguments = parse_arguments(IndexBenchmark, __doc__)
    scratch = Path(arguments.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    run_alone(make_vectors, scratch, max(arguments.sizes), threads=arguments.threads)
    report(arguments, *(measure_kills if arguments.kill else measure_engines)(arguments, scratch))


def measure_kills(arguments: IndexBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    lines: list[list[str]] = []
    for size in arguments.sizes:
        for dimension in arguments.dimensions:
            if "folder" in arguments.engines:
                with TemporaryDirectory(dir=scratch) as folder:
                    steps = kill_and_resume(f"{folder}/index", scratch, size, dimension)
                lines += [["folder", f"{dimension}", *step] for step in steps]
            if "milvus" in arguments.engines:
                with milvus(scratch) as (address, _, _):
                    steps = kill_and_resume(address, scratch, size, dimension)
                lines += [["Milvus", f"{dimension}", *step] for step in steps]
    return [table(["home", "dimensions", "", "took"], lines)], {"steps": lines}


def measure_engines(arguments: IndexBenchmark, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """The table of all rows in the scratch folder, and the rows."""
    path = scratch / "rows.jsonl"
    rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for size in arguments.sizes:
        for dimension in arguments.dimensions:
            tenth = None
            for engine in arguments.engines:
                for kind in ENGINES[engine]:
                    name = f"{size} x {dimension}, {engine}, {kind}, {arguments.threads} threads"
                    if name in rows and not arguments.again:
                        continue
                    if tenth is None:
                        best = run_alone(best_scores, scratch, size, dimension, threads=arguments.threads)
                        tenth = best[:, -1]
                    facts = run_alone(call, engine, kind, scratch, size, dimension, tenth, threads=arguments.threads)
                    rows[name] = {
                        "name": name,
                        "size": size,
                        "dimension": dimension,
                        "engine": engine,
                        "kind": kind,
                        **facts,
                    }
                    with path.open("a") as file:
                        file.write(json.dumps(rows[name]) + "\n")
                    print(rows[name], file=sys.stderr)
    header = ["vectors", "engine", "quantised", "build, s", "queries/s", "in batches of 100", "recall", "setting"]
    lines = [
        [
            f"{row['size']:,} x {row['dimension']}",
            f"{row['engine']}, {row['kind']}",
            "yes" if row["kind"] in QUANTISED else "no",
            f"{row['build s']:,.1f}",
            f"{row['queries/s']:,.0f}",
            f"{row['batch queries/s']:,.0f}",
            f"{row['recall']:.4f}",
            row["setting"],
            f"{row['peak MiB']:,.0f}",
            f"{row['disk MiB']:,.0f}",
        ]
        for row in sorted(rows.values(), key=lambda row: (row["size"], -row["dimension"]))
    ]
    return [table([*header, "peak memory, MiB", "disk, MiB"], lines)], {"rows": list(rows.values())}


if __name__ == "__main__":
    main()
