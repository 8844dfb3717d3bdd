"""Load a published folder the way its users do, with transformers alone, and search the held-out descriptions.

python scripts/search_as_a_stranger.py outputs/published
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST = 2_000  # of 10,000 descriptions, which take ten minutes on two cores without bf16
QUERIES = ("photo album organizer", "chat with friends", "solve systems of equations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published model folder")
    model = parser.parse_args().model

    sys.modules["tinybert_hf"] = None  # type: ignore[assignment]  # a stranger has no such package
    from transformers import pipeline

    lines = (ROOT / "data/debian/test/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines[:MOST]]
    search = pipeline("semantic-search", model=model, trust_remote_code=True)
    found = f"\nSearching {len(documents):,} package descriptions that training never saw;"
    print(f"{found} to encode them takes a minute or two.", flush=True)
    rankings = search(list(QUERIES), [document["text"] for document in documents], top_k=3)
    for query, ranking in zip(QUERIES, rankings, strict=True):
        print(f"\n{query}")
        for result in ranking:
            text = textwrap.shorten(result["text"], 90, placeholder=" ...")
            print(f"  {result['score']:.2f}  {documents[result['index']]['_id']}: {text}")

    for path in sorted(Path(model).glob("evaluation_*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        values = ", ".join(f"{name} {result['nDCG@10']:.3f}" for name, result in measured["results"].items())
        print(f"\nnDCG@10 of {measured['queries']} held-out queries: {values}")


if __name__ == "__main__":
    main()
