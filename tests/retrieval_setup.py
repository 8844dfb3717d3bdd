"""A BEIR folder of three documents, and a SentenceTransformer with random weights."""

import json
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

DOCUMENTS = {
    "d1": "play music from the command line",
    "d2": "read and write compressed archives",
    "d3": "manage photos and draw pictures",
}
QUERIES = {"q1": "music player", "q2": "photos", "unjudged": "mail"}
QRELS = {"q1": {"d1": 1}, "q2": {"d3": 1}}


def write_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": i, "title": "", "text": text} for i, text in DOCUMENTS.items()]
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q2\td3\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def save_sentence_transformer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = folder.with_name(f"{folder.name}-bert")
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)]).save(str(folder))
    return folder
