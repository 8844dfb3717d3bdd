"""tinybert mine: hard negatives for training."""

from pathlib import Path

from ..data_arguments import DataArguments
from ..errors import InputError, import_extra
from .terminal import hide_loading, log_progress


def mine(
    *,
    source: DataArguments,
    output_file: Path,
    query_column: str = "query",
    answer_column: str = "answer",
    corpus: str | None = None,
    corpus_column: str = "text",
    model: str | None = None,
    num_negatives: int = 5,
    margin: float = 0.05,
) -> None:
    """Find hard negatives: wrong answers that BM25 or a model ranks high for a query.

        tinybert mine --data pairs.csv --output_file mined.jsonl.gz                                # by BM25
        tinybert mine --data pairs.csv --output_file mined.jsonl.gz --model outputs/retrieval      # by a model
        tinybert train retrieval minilm --data mined.jsonl.gz --negative_columns negative_0 negative_1 negative_2

    Args:
        output_file: File for the pairs with their negatives: .jsonl, .jsonl.gz or .parquet.
        query_column: The column of the query.
        answer_column: The column of the text that answers it.
        corpus: More texts to choose from: a Hub id, a file or a folder. Do not pass texts of a test set.
        corpus_column: The column of --corpus.
        model: Rank with this model: a folder or Hub id of ours, or a SentenceTransformer. By default BM25 ranks.
        num_negatives: Negatives for each row. Where the ranking finds fewer, the others are drawn at random.
        margin: Only take texts that score at most (1 - margin) times the score of the row's own answer.
    """
    log_progress()
    import_extra("datasets", purpose="mining")
    hide_loading()
    from ..data import read_columns, without_progress_bars
    from ..mine_negatives import mine_data

    if not output_file.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise InputError(f"--output_file must end in .jsonl, .jsonl.gz or .parquet, got {output_file}.")
    columns = {"query": query_column, "answer": answer_column}
    flags = {name: f"{name}_column" for name in columns}
    pairs = read_columns(source.data, columns, flags, source.data_split, **source.reading)
    texts: list[str] = []
    if corpus:
        written = source.reading["written"]
        texts = read_columns(corpus, {"text": corpus_column}, {"text": "corpus_column"}, written=written)["text"][:]
    pairs = mine_data(pairs, texts, model, num_negatives=num_negatives, margin=margin)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    with without_progress_bars():
        if output_file.suffix == ".parquet":
            pairs.to_parquet(output_file)
        else:
            pairs.to_json(output_file, force_ascii=False)
    negatives = " ".join(name for name in pairs.column_names if name.startswith("negative_"))
    print(f"{len(pairs):,} rows with {num_negatives} negatives each, by {model or 'BM25'}: {output_file}")
    print(f"Train with: --data {output_file} --negative_columns {negatives}")
