"""An index over HTTP: search, embeddings in OpenAI's form, and a page for people."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import from_json

from ..errors import InputError
from ..index import Mode, SearchIndex
from ..pipeline_tinybert import with_prompt

MOST_REQUESTS = 256  # that are answered or wait
MOST_BYTES = 4 * 2**20  # of a body
PART = 64  # texts of one request that are encoded at once; then others have their turn
Question = Annotated[str, Field(min_length=1, max_length=2_000)]
TopK = Annotated[int, Field(ge=1, le=100)]
Filter = Annotated[Any, BeforeValidator(from_json)]
Text = Annotated[str, Field(min_length=1, max_length=32_768)]
HEADERS = {  # the page runs its own files and asks this server, no more
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
}
SECONDS = Histogram("tinybert_request_seconds", "Time to answer a request.", ["path"])
FAILED = Counter("tinybert_requests_failed", "Requests that were refused or failed.")
BATCH = Histogram("tinybert_batch_texts", "Texts encoded together.", buckets=[2**power for power in range(11)])


class EmbeddingsRequest(BaseModel):
    """As OpenAI defines it."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2_048)]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None  # the index has its own


class Service:
    """An index, its model, and the application `app` for both. With a key, requests must bring it."""

    def __init__(self, index: SearchIndex, api_key: str | None) -> None:
        self.index, self.pipeline, self.api_key = index, index.pipeline, api_key
        self.places = asyncio.Semaphore(MOST_REQUESTS)
        self.thread, self.thread_is_free = ThreadPoolExecutor(max_workers=1), asyncio.Lock()
        self.texts: list[str] = []  # of the next batch
        self.batch: asyncio.Task[list[tuple[np.ndarray, int]]] | None = None
        self.app = app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=MOST_BYTES)
        admit = [Depends(self.admit)]
        app.get("/search", dependencies=admit)(self.search)
        app.post("/v1/embeddings", dependencies=admit)(self.embeddings)
        app.get("/metrics", dependencies=admit)(lambda: Response(generate_latest(), media_type=CONTENT_TYPE_LATEST))
        app.get("/healthz")(lambda: {"status": "ok"})
        app.mount("/", StaticFiles(directory=Path(__file__).with_name("page"), html=True))
        app.exception_handler(InputError)(self.explain)
        app.exception_handler(RequestValidationError)(self.explain)
        if not api_key:  # pages of other sites may point their own name here (DNS rebinding)
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    async def admit(self, request: Request) -> AsyncIterator[None]:
        """Refuse a request that has no key or finds no place, and time all others."""
        given, wanted = request.headers.get("authorization", ""), f"Bearer {self.api_key}"
        with SECONDS.labels(request.url.path).time(), FAILED.count_exceptions():
            if self.api_key and not secrets.compare_digest(given.encode(), wanted.encode()):
                raise HTTPException(401, "Send the key of this server: Authorization: Bearer KEY.")
            if self.places.locked():
                raise HTTPException(503, f"{MOST_REQUESTS} requests wait. Come back later.", {"Retry-After": "1"})
            async with self.places:
                yield

    async def encode(self, texts: list[str]) -> list[tuple[np.ndarray, int]]:
        """Of each text, as it is: its embedding, (H,) of length 1, and its number of tokens."""
        self.batch = self.batch or asyncio.create_task(self._encode_batch())
        own = slice(len(self.texts), len(self.texts) + len(texts))
        self.texts += texts
        return (await asyncio.shield(self.batch))[own]  # the others go on if this one is cancelled

    async def _encode_batch(self) -> list[tuple[np.ndarray, int]]:
        async with self.thread_is_free:  # until then, others add their texts
            texts, self.texts, self.batch = self.texts, [], None
            return await asyncio.get_running_loop().run_in_executor(self.thread, self._encode_now, texts)

    def _encode_now(self, texts: list[str]) -> list[tuple[np.ndarray, int]]:
        BATCH.observe(len(texts))
        assert self.index.identity is not None  # it has a model
        rows = self.pipeline.encode(texts, truncate_dim=self.index.identity.dimension).numpy()
        return list(zip(rows, map(len, self.pipeline.tokenizer(texts, verbose=False)["input_ids"]), strict=True))

    async def search(
        self, q: Question, top_k: TopK = 3, filter: Filter = None, mode: Mode = "dense", highlight: bool = False
    ) -> JSONResponse:
        texts = [] if mode == "bm25" else with_prompt(self.pipeline.model.config, "query", [q])
        rows = np.stack([row for row, _ in await self.encode(texts)]) if texts else None
        rerank = 0 if mode == "bm25" else self.pipeline.model.config.rerank_depth
        thread = self.thread if rerank or highlight else None  # the model's, or any
        asked = q, top_k, filter, mode, rows, rerank, highlight
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(thread, self.index.search, *asked))

    async def embeddings(self, asked: EmbeddingsRequest) -> JSONResponse:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        data, tokens = list[dict[str, Any]](), 0
        for first in range(0, len(texts), PART):
            for row, count in await self.encode(texts[first : first + PART]):
                given = base64.b64encode(row.tobytes()).decode() if asked.encoding_format == "base64" else row.tolist()
                data.append({"object": "embedding", "index": len(data), "embedding": given})
                tokens += count
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})

    def explain(self, request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503 if isinstance(error, OSError) else 400)
