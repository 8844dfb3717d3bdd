"""A small index with its model, and a server for it, in this process and on loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex, TinyBertConfig, TinyBertModel
from tinybert_hf.serving.app import HEADERS, Service
from tinybert_hf.tokenization import save_tokenizer

RECORDS = [
    {"id": "cc", "text": "a fast compiler for small machines", "section": "devel", "year": 2001},
    {"id": "play", "text": "play music from the command line", "section": "sound", "year": 2010},
    {"id": "tar", "text": "read and write compressed archives", "section": "utils", "year": 1979},
    {"id": "getopt", "text": "library to parse command line arguments", "section": "devel", "year": 2010},
    {"id": "mutt", "text": "send and receive electronic mail", "section": "mail", "year": 1995},
]


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: object) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = TinyBertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, pooling="mean", **(sizes | settings))
    TinyBertModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def build_index(folder: Path, tokenizer: PreTrainedTokenizerBase, records: list = RECORDS, **settings: object) -> Path:
    """An index in `folder/index` by the model in `folder/model`."""
    model = save_model(folder / "model", tokenizer, **settings)
    SearchIndex(folder / "index", model).add(records)
    return folder / "index"


@contextmanager
def serve(service: Service) -> Iterator[str]:
    """The address of a server, as `tinybert serve` runs it."""
    config = uvicorn.Config(service.app, port=0, headers=[*HEADERS.items()], access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
