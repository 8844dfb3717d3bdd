"""tinybert evaluate: how well a model ranks."""

from pathlib import Path

from ..errors import import_extra
from ..reading import Written
from .terminal import hide_loading, log_progress, to_json


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
    """Measure how well a model ranks, and compare it with BM25, with both combined, and with other encoders.

        tinybert evaluate --model outputs/retrieval --data data/debian/test
        tinybert evaluate --model outputs/faq --data new_questions.csv --query_column question --answer_column reply
        tinybert evaluate --model outputs/retrieval --data mteb/nfcorpus --baselines sentence-transformers/all-MiniLM-L6-v2

    In a file of pairs, every query is ranked against all answers. A folder in BEIR layout has the files corpus.jsonl,
    queries.jsonl and qrels/test.tsv. The model card prints the results that are in the model's folder as
    evaluation_NAME.json: --output_file outputs/retrieval/evaluation_debian.json.

    Args:
        model: Folder or Hub id: a model of ours, or another encoder, such as sentence-transformers/all-MiniLM-L6-v2.
        data: A file of pairs, a folder in BEIR layout, or the Hub id of such a data set.
        split: Split of a data set in BEIR layout. NanoBEIR data sets need train.
        baselines: Other models to measure too: SentenceTransformers or models of ours, folders or Hub ids.
        truncate_dims: Also measure the model with this many of the first dimensions of its embeddings only.
        rerank: Also measure what ranking this many of the best again, token by token, gains and costs. 0: do not.
        query_column: The column of the query, in a file of pairs.
        answer_column: The column of the text that answers it.
        encoding: Encoding of a file of pairs, such as cp1252. By default UTF-8, or what a byte order mark says.
        separator: Separator of its columns. By default the one that its header uses.
        output_file: Also write the result here, as JSON.
    """
    log_progress()
    if output_file:
        output_file.parent.mkdir(parents=True, exist_ok=True)
    import_extra("datasets", purpose="measuring")
    hide_loading()
    from ..evaluation import evaluate_model, result_table

    columns, written = (query_column, answer_column), Written(encoding, separator)
    result = evaluate_model(model, data, split, baselines or (), truncate_dims or (), columns, written, rerank)
    print(result_table(result))
    if output_file:
        output_file.write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
