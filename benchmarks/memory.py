"""The memory of a process that searches for long, with queries of ever other lengths.

    python -m benchmarks.memory --model outputs/published
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024 python -m benchmarks.memory --model outputs/published     # oneDNN's own default

An index holds the bundled Debian descriptions of the test. Each search encodes one query of 1 to 200 words of them, drawn
with a fixed seed, and finds three of 500 records by both modes (hybrid). Memory is that of the whole process (RSS).
"""

import argparse
import random
import time
from tempfile import TemporaryDirectory

import psutil

from benchmarks.measure import table
from tinybert_hf.data import load_data
from tinybert_hf.index import SearchIndex

DATA = "data/debian/test/corpus.jsonl"
RECORDS = 500
ROWS = 10  # of the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--searches", type=int, default=2_000)
    arguments = parser.parse_args()
    texts = load_data(DATA)["text"][:RECORDS]
    words = " ".join(texts).split()
    rng, process, rows = random.Random(0), psutil.Process(), []
    with TemporaryDirectory() as folder:
        index = SearchIndex(folder, arguments.model)
        index.add(texts)
        started = time.process_time()
        for number in range(1, arguments.searches + 1):
            index.search(" ".join(rng.choices(words, k=rng.randint(1, 200))), mode="hybrid")
            if number % (arguments.searches // ROWS) == 0:
                rows.append([f"{number:,}", f"{process.memory_info().rss / 2**20:.0f}"])
    print(table(["searches", "MiB"], rows))
    print(f"\n{(time.process_time() - started) / arguments.searches:.3f} seconds of processor time a search")


if __name__ == "__main__":
    main()
