"""A LangChain retriever that asks a running `tinybert serve`.

python examples/langchain_retriever.py http://127.0.0.1:8000 "undo a commit"
"""

import sys

import httpx
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever


class TinybertRetriever(BaseRetriever):
    """Asks `tinybert serve`."""

    address: str
    top_k: int = 3

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        hits = httpx.get(f"{self.address}/search", params={"q": query, "top_k": self.top_k}).raise_for_status().json()
        return [Document(hit.pop("text"), id=hit.pop("id"), metadata=hit) for hit in hits]


if __name__ == "__main__":
    for document in TinybertRetriever(address=sys.argv[1]).invoke(sys.argv[2]):
        print(document.id, document.page_content, document.metadata)
