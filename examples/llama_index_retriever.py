"""A LlamaIndex retriever that asks a running `tinybert serve`.

python examples/llama_index_retriever.py http://127.0.0.1:8000 "undo a commit"
"""

import sys

import httpx
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode


class TinybertRetriever(BaseRetriever):
    """Asks `tinybert serve`."""

    def __init__(self, address: str, top_k: int = 3) -> None:
        self.address, self.top_k = address, top_k
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        params = {"q": query_bundle.query_str, "top_k": self.top_k}
        hits = httpx.get(f"{self.address}/search", params=params).raise_for_status().json()
        return [
            NodeWithScore(score=hit.pop("score"), node=TextNode(id_=hit.pop("id"), text=hit.pop("text"), metadata=hit))
            for hit in hits
        ]


if __name__ == "__main__":
    for found in TinybertRetriever(sys.argv[1]).retrieve(sys.argv[2]):
        print(found.node.node_id, found.node.get_content(), found.score)
