"""How many searches a second a server of an index answers, and how long they wait: 1, 8 and 32 clients on loopback.

    python -m benchmarks.serve --index packages.index --queries data/debian/test/queries.jsonl --requests 1000

The server is a `tinybert serve` of its own. A client asks its next question when it has the answer to the one before.
Clients share the machine with the server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from .measure import describe_machine, table

CLIENTS = (1, 8, 32)


def ask(address: str, questions: list[str]) -> list[float]:
    """One client: the milliseconds that each answer took."""
    waited = []
    with httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
        for question in questions:
            started = time.perf_counter()
            client.get("/search", params={"q": question, "top_k": 10}).raise_for_status()
            waited.append(1_000 * (time.perf_counter() - started))
    return waited


def measure(address: str, server: psutil.Process, queries: list[str], clients: int, requests: int) -> dict[str, Any]:
    questions = list(islice(cycle(queries), requests))
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        shares = [questions[first::clients] for first in range(clients)]
        waited = [each for client in pool.map(lambda share: ask(address, share), shares) for each in client]
    seconds = time.perf_counter() - started
    p50, p95 = np.percentile(waited, [50, 95])
    return {
        "clients": clients,
        "queries_per_second": round(requests / seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "server_mib": round(server.memory_info().rss / 2**20),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--queries", type=Path, required=True, help="jsonl with a text in each line")
    parser.add_argument("--requests", type=int, default=1_000, help="of each number of clients")
    parser.add_argument("--output_file", type=Path)
    arguments = parser.parse_args()
    queries = [json.loads(line)["text"] for line in arguments.queries.read_text(encoding="utf-8").splitlines()]
    command = [sys.executable, "-m", "tinybert_hf", "serve", arguments.index, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while not (found := re.search(r"running on (http://\S+)", process.stderr.readline())):
            assert process.poll() is None, "the server did not start"
        ask(found[1], queries[:50])  # what is loaded and packed once
        rounds = [*CLIENTS, CLIENTS[-1]]  # twice the most: whether its memory stays
        server = psutil.Process(process.pid)
        rows = [measure(found[1], server, queries, clients, arguments.requests) for clients in rounds]
        process.terminate()
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    if arguments.output_file:
        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        result = {"machine": describe_machine(threads), "requests": arguments.requests, "rows": rows}
        arguments.output_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
