"""Two servers that speak Milvus' protocol, from `.interop-milvus`: its own of 2023, and milvus-lite, which has BM25.

Run by that environment's Python, this file starts the first, prints its port, and ends it when standard input ends:
also when the tests that started it are killed. It listens on every interface, as its configuration knows no other; what
belongs to it is registered on loopback.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PYTHON = Path(__file__).parent.parent / ".interop-milvus" / "bin" / "python"


@contextmanager
def milvus_server(kind: str, folder: Path) -> Iterator[str]:
    """Start `milvus` or `milvus-lite` with its data in `folder`; its address."""
    assert PYTHON.is_file(), f"The tests of the index need {PYTHON.parent.parent}: run `make interop`."
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, __file__, kind, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            text=True,
        )
        assert process.stdin and process.stdout
        try:
            port = process.stdout.readline().strip()
            assert port, (
                f"{kind} did not start; its last words, from {folder}/log: {(folder / 'log').read_text()[-2000:]} "
                "It runs on Linux (x86-64, glibc 2.28 or later) and macOS; `rm -r .interop-milvus; make interop` installs "
                "it anew."
            )
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def run_milvus(folder: str) -> None:
    from milvus import MilvusServer

    server = MilvusServer()
    server.set_base_dir(folder)
    client, peer = free_ports(2)
    server.config.configs["etcd_port"] = client
    # The package moves every port out of the way but those of the etcd inside: two servers could not run at once.
    etcd = {
        "name": "default",
        "initial-cluster": f"default=http://127.0.0.1:{peer}",
        **dict.fromkeys(("listen-client-urls", "advertise-client-urls"), f"http://127.0.0.1:{client}"),
        **dict.fromkeys(("listen-peer-urls", "initial-advertise-peer-urls"), f"http://127.0.0.1:{peer}"),
    }
    config = Path(folder, "etcd.yaml")
    config.write_text("".join(f"{name}: {value}\n" for name, value in etcd.items()))
    os.environ["ETCD_CONFIG_PATH"] = str(config)
    for part in ("proxy", "rootCoord", "queryCoord", "queryNode", "dataCoord", "dataNode", "indexNode"):
        server.config.set(f"{part}.ip", "127.0.0.1")
    try:
        server.start()
        print(server.listen_port, flush=True)
        sys.stdin.read()
    finally:
        server.stop()


def run_milvus_lite(folder: str) -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, _, port = start_server_in_thread(folder)
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # a whole test run that is ended: the server must go too
    {"milvus": run_milvus, "milvus-lite": run_milvus_lite}[sys.argv[1]](sys.argv[2])
