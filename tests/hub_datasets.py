"""Small copies of Hub data sets, with the real column names, label names and file layout."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


def parquet(columns: dict[str, pa.Array]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def class_label(*names: str) -> dict:
    return {"class_label": {"names": {str(i): name for i, name in enumerate(names)}}}


def repository(
    config: str, folder: str, features: dict[str, str | dict], splits: dict[str, dict[str, pa.Array]]
) -> dict[str, bytes]:
    """Files of a data set repository: one parquet file a split, and the card whose head describes them."""
    files = {f"{folder}/{split}-00000-of-00001.parquet": parquet(columns) for split, columns in splits.items()}
    rows = {split: len(next(iter(columns.values()))) for split, columns in splits.items()}
    head = {
        "dataset_info": {
            "config_name": config,
            "features": [{"name": name, "dtype": dtype} for name, dtype in features.items()],
            "splits": [{"name": split, "num_bytes": 1, "num_examples": n} for split, n in rows.items()],
        },
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": f"{folder}/{split}-*"} for split in splits]}
        ],
    }
    return {"README.md": f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n".encode(), **files}


def sst2(train: Sequence[tuple[str, int]], validation: Sequence[tuple[str, int]]) -> dict[str, bytes]:
    """stanfordnlp/sst2: splits train and validation, and test, whose labels are all -1."""

    def split(rows: Sequence[tuple[str, int]]) -> dict[str, pa.Array]:
        return {
            "idx": pa.array(range(len(rows)), pa.int32()),
            "sentence": pa.array([text for text, _ in rows]),
            "label": pa.array([label for _, label in rows], pa.int64()),
        }

    features = {"idx": "int32", "sentence": "string", "label": class_label("negative", "positive")}
    splits = {"train": split(train), "validation": split(validation), "test": split([("unlabelled", -1)])}
    return repository("default", "data", features, splits)


def natural_questions(pairs: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """sentence-transformers/natural-questions: the configuration pair, split train."""
    columns = {"query": pa.array([query for query, _ in pairs]), "answer": pa.array([answer for _, answer in pairs])}
    return repository("pair", "pair", {"query": "string", "answer": "string"}, {"train": columns})


def all_nli(rows: Sequence[tuple[str, str, int]]) -> dict[str, bytes]:
    """sentence-transformers/all-nli: the configuration pair-class, splits train and dev."""
    columns = {
        "premise": pa.array([row[0] for row in rows]),
        "hypothesis": pa.array([row[1] for row in rows]),
        "label": pa.array([row[2] for row in rows], pa.int64()),
    }
    features = {
        "premise": "string",
        "hypothesis": "string",
        "label": class_label("entailment", "neutral", "contradiction"),
    }
    return repository("pair-class", "pair-class", features, {"train": columns, "dev": columns})


def beir(
    layout: str, name: str, documents: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]]
) -> dict[str, dict[str, bytes]]:
    """The repositories of a retrieval data set (name -> files), in one of three layouts.

    NanoBEIR (zeta-alpha-ai/NanoNFCorpus): configurations corpus, queries and qrels, each with the split train; the
    judgements have no grade. MTEB (mteb/nfcorpus): the judgements are the configuration default. BEIR (BeIR/nfcorpus):
    they are a data set of their own.
    """

    def texts(rows: dict[str, str]) -> dict[str, pa.Array]:
        return {"_id": pa.array(list(rows)), "text": pa.array(list(rows.values()))}

    judged = [(query, document) for query, grades in qrels.items() for document in grades]
    judgements = {
        "query-id": pa.array([query for query, _ in judged]),
        "corpus-id": pa.array([document for _, document in judged]),
    }
    if layout == "NanoBEIR":
        parts = [("corpus", "train", texts(documents)), ("queries", "train", texts(queries))]
        return {name: configurations([*parts, ("qrels", "train", judgements)])}
    judgements["score"] = pa.array([qrels[query][document] for query, document in judged])
    parts = [("corpus", "corpus", texts(documents)), ("queries", "queries", texts(queries))]
    own = ("default", "test", judgements)
    if layout == "MTEB":
        return {name: configurations([*parts, own])}
    return {name: configurations(parts), f"{name}-qrels": configurations([own])}


def configurations(parts: Sequence[tuple[str, str, dict[str, pa.Array]]]) -> dict[str, bytes]:
    """Files of a repository with several configurations of one split each: (configuration, split, columns)."""
    head = {
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": f"{config}/{split}-*"}]}
            for config, split, _ in parts
        ]
    }
    files = {f"{config}/{split}-00000-of-00001.parquet": parquet(columns) for config, split, columns in parts}
    return {"README.md": f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n".encode(), **files}
