"""tinybert mine: hard negatives for training."""

from pathlib import Path

from ..data_arguments import DataArguments
from ..extras import import_extra
from .terminal import log_progress


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
    depth: int | None = None,
    margin: float = 0.05,
    seed: int = 0,
) -> None:
    """Find hard negatives: texts that a ranking takes for the answer of a query, and that are not.

        tinybert mine --data pairs.csv --output_file mined.jsonl.gz                                # by BM25
        tinybert mine --data pairs.csv --output_file mined.jsonl.gz --model outputs/retrieval      # by a model
        tinybert train retrieval minilm --data mined.jsonl.gz --negative_columns negative_0 negative_1 negative_2

    Args:
        output_file: Where the pairs go with their negatives: a .jsonl, .jsonl.gz or .parquet file.
        query_column: The column of the query.
        answer_column: The column of the text that answers it.
        corpus: Further texts to choose from: a Hub id, a file or a folder. Not those of a test.
        corpus_column: The column of --corpus.
        model: Rank with this model, a folder or a Hub id: one of ours, or a SentenceTransformer. Without it, BM25 ranks.
        num_negatives: Negatives for each row.
        depth: Choose at random among so many of the best. Without it, the best are taken.
        margin: Only texts that score up to (1 - margin) times what the row's own answer does.
        seed: Seed of what is chosen at random.
    """
    log_progress()
    import_extra("datasets", purpose="mining")
    from ..data import read_columns
    from ..mine_negatives import check_output_file, describe_negatives, mine_data, write_pairs

    check_output_file(output_file)
    columns = {"query": query_column, "answer": answer_column}
    flags = {name: f"{name}_column" for name in columns}
    pairs = read_columns(source.data, columns, flags, source.data_split, **source.reading)
    texts: list[str] = []
    if corpus:
        written = source.reading["written"]
        texts = read_columns(corpus, {"text": corpus_column}, {"text": "corpus_column"}, written=written)["text"][:]
    pairs, mined = mine_data(pairs, texts, model, num_negatives=num_negatives, depth=depth, margin=margin, seed=seed)
    write_pairs(pairs, output_file)
    print(describe_negatives(mined, model or "BM25", output_file))
