"""An index as a tool for language models: the protocol's own client asks a `tinybert mcp` of its own.

python -m pytest tests/serving/test_mcp.py -q
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fresh_process import NO_NETWORK
from serving_setup import build_index
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex


async def ask(index: Path, calls: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """The tools of a server, and what they answer, all asked at once."""
    from mcp import (
        Client,
        StdioServerParameters,
        stdio_client,
    )  # here, since every process of the tests would import it

    command = ["-m", "tinybert_hf", "mcp", str(index)]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=os.environ | NO_NETWORK)
    async with Client(stdio_client(parameters)) as client:
        tools = (await client.list_tools()).tools
        return tools, await asyncio.gather(*(client.call_tool("search", call) for call in calls))


@pytest.mark.slow
def test_a_language_model_searches_and_reads_what_is_wrong(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    index = build_index(tmp_path, tokenizer)
    calls: list[dict[str, Any]] = [
        {"query": "play some music"},
        {"query": "play some music", "top_k": 2, "mode": "hybrid", "filter": {"year": {">": 2005}}},
        {"query": "play", "filter": {"colour": "red"}},
        {"query": " "},
        {"query": "play", "top_k": 0},
    ]
    [tool], answers = asyncio.run(ask(index, calls))
    assert tool.name == "search" and "section" in tool.description and str(index) in tool.description
    assert set(tool.input_schema["properties"]) == {"query", "top_k", "mode", "filter"}
    own = SearchIndex(index)
    for call, answer in zip(calls[:2], answers, strict=False):
        expected = own.search(call["query"], call.get("top_k", 5), call.get("filter"), call.get("mode", "dense"))
        found = answer.structured_content["result"]
        assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
        assert found[0].keys() == expected[0].keys()
    for answer, words in zip(answers[2:], ["no field 'colour'", "queries is empty", "top_k must be"], strict=True):
        assert answer.is_error and words in answer.content[0].text
