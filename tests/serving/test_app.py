"""What a server of an index answers, over real connections.

python -m pytest tests/serving/test_app.py -q
"""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving_setup import RECORDS, build_index, save_model, serve
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex, load_search_pipeline
from tinybert_hf.serving import app as module
from tinybert_hf.serving.app import MOST_BYTES, Service

QUESTION = "play some music"


@pytest.fixture(scope="module")
def index(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    return SearchIndex(build_index(tmp_path_factory.mktemp("served"), tokenizer))


@pytest.fixture(scope="module")
def client(index: SearchIndex) -> Iterator[httpx.Client]:
    with serve(Service(index, None)) as address, connect(address) as client:
        yield client


def connect(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, trust_env=False, timeout=60)


def embed(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "any"} | body)


# ---- Search ----


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_search_answers_what_the_index_finds(client: httpx.Client, index: SearchIndex, mode: str) -> None:
    given = {"q": QUESTION, "top_k": 2, "mode": mode, "filter": '{"section": ["devel", "sound"], "year": {">": 2005}}'}
    expected = index.search(QUESTION, 2, json.loads(given["filter"]), mode)  # type: ignore[arg-type]
    found = client.get("/search", params=given).json()
    assert expected
    assert [hit | {"score": 0} for hit in found] == [hit | {"score": 0} for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)


def test_without_top_k_there_are_as_many_hits_as_on_the_command_line(client: httpx.Client) -> None:
    assert len(client.get("/search", params={"q": QUESTION}).json()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 4])
def test_a_search_ranks_anew_as_the_model_says_and_marks_what_answers(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, depth: int
) -> None:
    index = SearchIndex(build_index(tmp_path, tokenizer, rerank_depth=depth, rerank_weight=1.0))
    expected = {question: index.search(question, 4, highlight=True) for question in (QUESTION, "mail", "archives")}
    with serve(Service(index, None)) as address, ThreadPoolExecutor() as pool:

        def ask(question: str) -> Any:
            given = {"q": question, "top_k": 4, "highlight": True}
            return httpx.get(f"{address}/search", params=given, trust_env=False).json()  # type: ignore[arg-type]

        for question, found in zip([*expected] * 3, pool.map(ask, [*expected] * 3), strict=True):
            for hit, own in zip(found, expected[question], strict=True):
                assert hit | {"score": 0} == own | {"score": 0, "highlight": list(own["highlight"])}
                assert hit["score"] == pytest.approx(own["score"], abs=1e-5)
    assert any(own["highlight"] != (0, 0) for own in expected[QUESTION])


def test_a_prompt_is_put_before_a_query(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    index = SearchIndex(build_index(tmp_path, tokenizer, prompts={"query": "music photo: ", "document": ""}))
    with serve(Service(index, None)) as address:
        found = httpx.get(f"{address}/search", params={"q": "mail"}, trust_env=False).json()
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in index.search("mail")], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["q", "required"]),
        ({"q": ""}, ["q", "at least 1 character"]),
        ({"q": " "}, ["queries is empty"]),
        ({"q": "x" * 2_001}, ["q", "at most 2000 characters"]),
        ({"q": "x", "top_k": 101}, ["top_k", "less than or equal to 100", "101"]),
        ({"q": "x", "top_k": 0}, ["top_k", "greater than or equal to 1"]),
        ({"q": "x", "mode": "fuzzy"}, ["mode", "'dense', 'bm25' or 'hybrid'", "fuzzy"]),
        ({"q": "x", "filter": "{'a'"}, ["filter", "key must be a string"]),
        ({"q": "x", "filter": "[1]"}, ["A filter is a mapping", "[1]"]),
        ({"q": "x", "filter": "[" * 9_000}, ["filter", "recursion limit"]),
        ({"q": "x", "filter": '{"colour": "red"}'}, ["no field 'colour'", "section, year"]),
        ({"q": "x", "filter": '{"year": "red"}'}, ["filter['year'] must be of the field's type int", "'red'"]),
    ],
)
def test_a_wrong_search_is_refused_by_name_value_and_limit(
    client: httpx.Client, given: dict[str, Any], words: list[str]
) -> None:
    response = client.get("/search", params=given)
    assert response.status_code == 400
    detail = response.json()["detail"]
    assert not [word for word in words if word not in detail], detail


def test_an_index_that_cannot_be_read_is_the_servers_fault(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    folder = build_index(tmp_path, tokenizer)
    with serve(Service(SearchIndex(folder), None)) as address:
        for file in folder.rglob("data/*"):
            file.write_bytes(b"damaged")
        response = httpx.get(f"{address}/search", params={"q": "x"}, trust_env=False)
    assert response.status_code == 503 and "could not be read" in response.json()["detail"]


# ---- Embeddings ----


def test_embeddings_are_those_of_the_model(client: httpx.Client, index: SearchIndex) -> None:
    texts = [record["text"] for record in RECORDS] * 30  # more than are encoded at once
    body = embed(client, input=texts).json()
    assert [row["index"] for row in body["data"]] == list(range(150))
    expected = index.pipeline.encode([str(text) for text in texts]).numpy()
    np.testing.assert_allclose([row["embedding"] for row in body["data"]], expected, atol=1e-6)
    tokens = sum(map(len, index.pipeline.tokenizer(texts)["input_ids"]))
    assert (body["object"], body["model"]) == ("list", "any")
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_holds_the_same_numbers_as_floats(client: httpx.Client) -> None:
    (as_text,) = embed(client, input=QUESTION, encoding_format="base64").json()["data"]
    (as_list,) = embed(client, input=[QUESTION]).json()["data"]
    row = np.frombuffer(base64.b64decode(as_text["embedding"]), dtype="<f4")
    np.testing.assert_allclose(row, as_list["embedding"], rtol=1e-6)
    assert row.shape == (32,) and np.linalg.norm(row) == pytest.approx(1)


@pytest.mark.slow
def test_the_client_of_openai_understands_both_forms(client: httpx.Client) -> None:
    openai = pytest.importorskip("openai")
    asking = openai.OpenAI(
        base_url=f"{client.base_url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(trust_env=False)
    )
    default = asking.embeddings.create(model="any", input=QUESTION)  # it asks for base64
    floats = asking.embeddings.create(model="any", input=[QUESTION], encoding_format="float")
    np.testing.assert_allclose(default.data[0].embedding, floats.data[0].embedding, rtol=1e-6)
    assert default.usage.prompt_tokens > 2
    with pytest.raises(openai.BadRequestError) as refused:
        asking.embeddings.create(model="any", input=["x"] * 2_049)
    assert "at most 2048 items" in refused.value.response.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": []}, ["at least 1 item"]),
        ({"input": ""}, ["at least 1 character"]),
        ({"input": ["x", ""]}, ["at least 1 character"]),
        ({"input": "x" * 32_769}, ["at most 32768 characters"]),
        ({"input": [[1, 2]]}, ["valid string"]),
        ({"input": "x", "encoding_format": "hex"}, ["'float' or 'base64'", "hex"]),
        ({"input": "x", "dimensions": 16}, ["dimensions", "16"]),
        ({"input": "x", "model": None}, ["model", "valid string"]),
    ],
)
def test_a_wrong_request_for_embeddings_is_refused(
    client: httpx.Client, body: dict[str, Any], words: list[str]
) -> None:
    response = embed(client, **body)
    assert response.status_code == 400
    assert not [word for word in words if word not in response.text], response.text


def test_half_a_character_is_refused(client: httpx.Client) -> None:
    body = '{"model": "any", "input": "\\ud800"}'
    response = client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_not_read(client: httpx.Client, chunked: bool) -> None:
    body = b"x" * (MOST_BYTES + 1)
    content: Any = iter([body[:MOST_BYTES], body[MOST_BYTES:]]) if chunked else body
    try:
        response = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    except httpx.WriteError:  # the server has hung up
        return
    assert response.status_code == 413


# ---- Who may ask ----


@pytest.fixture(scope="module")
def locked(index: SearchIndex) -> Iterator[httpx.Client]:
    with serve(Service(index, "secret")) as address, connect(address) as client:
        yield client


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "secret", "Bearer secret ", "Bearer sécret"])
@pytest.mark.parametrize("path", ["/search?q=x", "/v1/embeddings", "/metrics"])
def test_without_the_right_key_nothing_is_answered(locked: httpx.Client, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.strip().encode()}
    method = "POST" if path == "/v1/embeddings" else "GET"
    if header == "Bearer secret ":  # HTTP cuts the blank off
        assert locked.request(method, path, headers=headers).status_code != 401
        return
    response = locked.request(method, path, headers=headers)
    assert response.status_code == 401 and "Bearer" in response.json()["detail"]


def test_with_the_key_all_is_answered(locked: httpx.Client) -> None:
    headers = {"Authorization": "Bearer secret"}
    assert locked.get("/search", params={"q": "x"}, headers=headers).status_code == 200
    assert "tinybert_requests_failed_total" in locked.get("/metrics", headers=headers).text


def test_page_and_health_need_no_key(locked: httpx.Client) -> None:
    assert locked.get("/").status_code == 200
    assert locked.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
    ],
)
@pytest.mark.parametrize("path", ["/", "/search?q=x"])
def test_the_name_of_another_site_is_refused(client: httpx.Client, path: str, host: str, status: int) -> None:
    assert client.get(path, headers={"Host": host}).status_code == status


# ---- Many at once ----


def test_what_arrives_while_the_model_is_busy_is_encoded_together(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is held back until the others have arrived; each gets its own answer."""
    service, sizes, go_on = Service(index, None), list[int](), threading.Event()
    encode = service._encode_now

    def wait_and_encode(texts: list[str]) -> Any:
        sizes.append(len(texts))
        assert go_on.wait(60)
        return encode(texts)

    monkeypatch.setattr(service, "_encode_now", wait_and_encode)
    questions = [str(record["text"]) for record in RECORDS] * 4
    with serve(service) as address, connect(address) as client, ThreadPoolExecutor(len(questions)) as pool:
        answers = [pool.submit(client.get, "/search", params={"q": question, "top_k": 1}) for question in questions]
        while sum(sizes) + len(service.texts) < len(questions):
            pass_time()
        go_on.set()
        found = [answer.result().json()[0]["text"] for answer in answers]
    assert found == questions
    assert sum(sizes) == len(questions) and len(sizes) == 2


def pass_time() -> None:
    threading.Event().wait(0.02)


def test_a_long_list_lets_others_in_between(index: SearchIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    service, batches = Service(index, None), list[list[str]]()
    encode = service._encode_now

    def keep(texts: list[str]) -> Any:
        batches.append(texts)
        pass_time()
        return encode(texts)

    monkeypatch.setattr(service, "_encode_now", keep)
    with serve(service) as address, connect(address) as client, ThreadPoolExecutor(2) as pool:
        long = pool.submit(embed, client, input=["long"] * 1_000)
        while not batches:
            pass_time()
        client.get("/search", params={"q": "between"})
        assert len(long.result().json()["data"]) == 1_000
    turn = next(number for number, texts in enumerate(batches) if "between" in texts)
    assert turn < len(batches) - 1
    assert max(map(len, batches)) <= module.PART + 1


def test_when_too_many_wait_more_are_sent_away(index: SearchIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REQUESTS", 2)
    service, go_on = Service(index, None), threading.Event()
    encode = service._encode_now
    monkeypatch.setattr(service, "_encode_now", lambda texts: go_on.wait(60) and encode(texts))
    with serve(service) as address, connect(address) as client:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(client.get, "/search", params={"q": "x"}) for _ in range(2)]
            while not service.places.locked():
                pass_time()
            refused = client.get("/search", params={"q": "x"})
            assert client.get("/healthz").status_code == 200
            go_on.set()
            assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert "2 requests wait" in refused.json()["detail"]
        assert client.get("/search", params={"q": "x"}).status_code == 200


def test_an_error_of_the_model_reaches_those_who_wait_and_nobody_else(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(index, None)
    encode = service._encode_now

    def fail(texts: list[str]) -> Any:
        if "broken" in texts:
            raise RuntimeError("the model broke")
        return encode(texts)

    monkeypatch.setattr(service, "_encode_now", fail)
    with serve(service) as address, connect(address) as client:
        assert client.get("/search", params={"q": "broken"}, headers={"Connection": "close"}).status_code == 500
        assert client.get("/search", params={"q": "x"}).status_code == 200


# ---- What else ----


def counted(client: httpx.Client) -> dict[str, float]:
    lines = [line.split() for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_search_by_words_encodes_nothing(client: httpx.Client) -> None:
    before = counted(client)
    assert client.get("/search", params={"q": QUESTION, "mode": "bm25"}).json()
    assert counted(client)["tinybert_batch_texts_sum"] == before["tinybert_batch_texts_sum"]
    client.get("/search", params={"q": QUESTION})
    assert counted(client)["tinybert_batch_texts_sum"] == before["tinybert_batch_texts_sum"] + 1


def test_metrics_count_requests_failures_and_batches(client: httpx.Client) -> None:
    before = counted(client)
    client.get("/search", params={"q": "x"})
    client.get("/search", params={"q": "x", "filter": '{"colour": 1}'})
    after = counted(client)
    for name, more in (
        ('tinybert_request_seconds_count{path="/search"}', 2),
        ("tinybert_requests_failed_total", 1),
        ("tinybert_batch_texts_sum", 2),
    ):
        assert after[name] - before.get(name, 0) == more, name
    assert after["process_resident_memory_bytes"] > 0


def test_the_page_may_run_its_own_files_only(client: httpx.Client) -> None:
    response = client.get("/?q=music")
    assert response.headers["Content-Type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "://" not in response.text and "<style" not in response.text and " style=" not in response.text
    for file in ("page.js", "style.css"):
        assert file in response.text and client.get(f"/{file}").status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/app.py", "/../app.py", "/%2e%2e/app.py"])
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_model_that_moved_is_found_where_it_is_now(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", tokenizer)
    SearchIndex(tmp_path / "index", model, truncate_dim=16).add(["play music", "send mail"])
    moved = model.rename(tmp_path / "moved")
    index = SearchIndex(tmp_path / "index", moved)
    with serve(Service(index, None)) as address:
        found = httpx.get(f"{address}/search", params={"q": "play music"}, trust_env=False).json()
        rows = httpx.post(f"{address}/v1/embeddings", json={"model": "m", "input": "mail"}, trust_env=False).json()
    expected = load_search_pipeline(moved).encode(["play music"] * 2, truncate_dim=16)
    assert found[0]["score"] == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)
    assert len(rows["data"][0]["embedding"]) == 16
