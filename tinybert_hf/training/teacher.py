"""Another encoder's embeddings of texts and tokens: computed once, kept on disk for every later run."""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data import text_id
from ..evaluation import load_text_encoder
from ..progress import progress_bar

logger = logging.getLogger(__name__)

WINDOW = 1024  # texts whose embeddings are written together: what a killed run loses at most
# What decides a folder's embeddings: weights, settings (of the modules, pooling among them, too), and tokenizer.
IDENTIFYING = ("*.safetensors", "*.bin", "*config*.json", "modules.json", "tokenizer.json", "vocab.txt")


def embed_with_teacher(teacher: str, texts: Sequence[str], cache_dir: Path | None = None) -> Tensor:
    """Embed texts with a teacher, or look up what it made of them before: (N, width) fp16, rows of length 1.

    The teacher is a folder or a Hub id of a tinybert model, of a SentenceTransformer, or of an encoder that
    SentenceTransformer loads (any AutoModel, with mean pooling). The cache (default: `tinybert_hf/teachers` in `HF_HOME`)
    is one SQLite file for each teacher (folder's content, or Hub commit), and in it a row for each text, so that another
    data set with the same texts finds them too. A killed run goes on where it stopped.

    Raises: UnreadableError: if the teacher cannot be loaded.
    """
    encode, identity = load_teacher(teacher)
    cache_dir = cache_dir or Path(constants.HF_HOME, "tinybert_hf", "teachers")
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.sqlite"
    distinct = {text_id(text): text for text in texts}
    with closing(sqlite3.connect(path, timeout=600)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS embeddings (text INTEGER PRIMARY KEY, embedding BLOB)")
        known = {text for (text,) in database.execute("SELECT text FROM embeddings")}
        # Texts of like length together, the longest first: the estimate of the time that is left errs on the safe side.
        missing = sorted(distinct.keys() - known, key=lambda key: len(distinct[key]), reverse=True)
        logger.info("Teacher %s: %d of %d texts are in %s.", teacher, len(distinct) - len(missing), len(distinct), path)
        with progress_bar(total=len(missing), unit="text", desc="Embedding (teacher)", dynamic_ncols=True) as bar:
            for start in range(0, len(missing), WINDOW):
                keys = missing[start : start + WINDOW]
                rows = torch.nn.functional.normalize(encode([distinct[key] for key in keys]).float(), dim=-1)
                blobs = (row.tobytes() for row in rows.half().cpu().numpy())
                with database:  # a transaction
                    database.executemany(
                        "INSERT OR IGNORE INTO embeddings VALUES (?, ?)", zip(keys, blobs, strict=True)
                    )
                bar.update(len(keys))
        cached = database.execute("SELECT text, embedding FROM embeddings")
        found = {text: np.frombuffer(blob, np.float16) for text, blob in cached if text in distinct}
    return torch.from_numpy(np.stack([found[text_id(text)] for text in texts]))


def embed_tokens(teacher: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What `embed_with_teacher` makes of each of V tokens: (V, width) fp32, centred; special tokens are rows of zeros.

    A token is given to the teacher as a text of its own; pieces of words lose their mark. The result is rotated so that
    the first dimensions vary the most (principal components, as in Model2Vec: Tulkens and van Dongen 2024,
    https://github.com/MinishLab/model2vec), which leaves the similarities of the centred embeddings as they are.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    embeddings = embed_with_teacher(teacher, [token.removeprefix("##") for token in tokens]).float()
    embeddings -= embeddings.mean(dim=0)
    embeddings[tokenizer.all_special_ids] = 0
    _, directions = torch.linalg.eigh(embeddings.T @ embeddings)  # the least telling direction first
    return embeddings @ directions.flip(1)


def load_teacher(teacher: str) -> tuple[Callable[[Sequence[str]], Tensor], str]:
    """The teacher as a function from texts to (N, D), and what tells it from others."""
    encode = load_text_encoder(teacher, "teacher", show_progress_bar=False).encode_documents
    if not Path(teacher).is_dir():
        return encode, f"{teacher}@{PreTrainedConfig.get_config_dict(teacher)[0]['_commit_hash']}"
    digest = hashlib.sha256()
    for pattern in IDENTIFYING:
        for path in sorted(Path(teacher).rglob(pattern)):
            digest.update(path.read_bytes())
    return encode, digest.hexdigest()
