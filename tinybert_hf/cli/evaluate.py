"""tinybert evaluate: how well a model ranks."""

from pathlib import Path

from ..extras import import_extra
from ..reading import Written
from .terminal import log_progress, to_json


def evaluate(
    *,
    model: str,
    data: str,
    split: str = "test",
    baselines: list[str] | None = None,
    truncate_dims: list[int] | None = None,
    rerank: int = 0,
    query_column: str = "query",
    answer_column: str = "answer",
    encoding: str | None = None,
    separator: str | None = None,
    output_file: Path | None = None,
) -> None:
    """Measure how well a model ranks, beside BM25, both fused, and other encoders.

        tinybert evaluate --model outputs/retrieval --data data/debian/test
        tinybert evaluate --model outputs/faq --data new_questions.csv --query_column question --answer_column reply
        tinybert evaluate --model outputs/retrieval --data mteb/nfcorpus --baselines sentence-transformers/all-MiniLM-L6-v2

    Of a file of pairs, every query ranks all answers. A folder in BEIR layout has corpus.jsonl, queries.jsonl and
    qrels/test.tsv. The model card prints every
    evaluation_NAME.json of a model folder: --output_file outputs/retrieval/evaluation_debian.json.

    Args:
        model: A folder or a Hub id: a model of ours, or another encoder (as sentence-transformers/all-MiniLM-L6-v2).
        data: A file of pairs, a folder in BEIR layout, or the Hub id of such a data set.
        split: Which judgements to use; NanoBEIR has the split train.
        baselines: Other models to measure too: SentenceTransformers or models of ours, folders or Hub ids.
        truncate_dims: Measure the first so many dimensions of the model's embeddings too.
        rerank: Measure too what ranking so many of the best anew by their tokens brings, and takes.
        query_column: The column of the query, in a file of pairs.
        answer_column: The column of the text that answers it.
        encoding: Encoding of a file of pairs, as cp1252. Without it, UTF-8, or what a byte order mark says.
        separator: What separates its columns. Without it, what the header shows.
        output_file: Also write the result here, as JSON.
    """
    log_progress()
    if output_file:
        output_file.parent.mkdir(parents=True, exist_ok=True)
    import_extra("datasets", purpose="measuring")
    from ..evaluation import evaluate_model, result_table

    columns, written = (query_column, answer_column), Written(encoding, separator)
    result = evaluate_model(model, data, split, baselines or (), truncate_dims or (), columns, written, rerank)
    print(result_table(result))
    if output_file:
        output_file.write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
