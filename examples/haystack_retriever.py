"""A Haystack retriever that asks a running `tinybert serve`.

python examples/haystack_retriever.py http://127.0.0.1:8000 "undo a commit"
"""

import sys
from typing import Any

import httpx
from haystack import Document, Pipeline, component


@component
class TinybertRetriever:
    """Asks `tinybert serve`."""

    def __init__(self, address: str, top_k: int = 3) -> None:
        self.address, self.top_k = address, top_k

    @component.output_types(documents=list[Document])
    def run(self, query: str) -> dict[str, Any]:
        hits = httpx.get(f"{self.address}/search", params={"q": query, "top_k": self.top_k}).raise_for_status().json()
        return {
            "documents": [
                Document(id=hit.pop("id"), content=hit.pop("text"), score=hit.pop("score"), meta=hit) for hit in hits
            ]
        }


if __name__ == "__main__":
    pipeline = Pipeline()
    pipeline.add_component("retriever", TinybertRetriever(sys.argv[1]))
    for document in pipeline.run({"retriever": {"query": sys.argv[2]}})["retriever"]["documents"]:
        print(document.id, document.content, document.score)
