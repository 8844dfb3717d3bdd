"""An index as a tool of the Model Context Protocol, with which language models search it."""

from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from ..errors import InputError
from ..index import Mode, SearchIndex


def create_server(index: SearchIndex) -> MCPServer:
    """The server, with one tool."""
    server: MCPServer = MCPServer("tinybert", log_level="WARNING")
    use = """mode: "dense" ranks by meaning, "bm25" by words, "hybrid" by both. filter: what metadata must be, as
        {"section": ["vcs", "devel"], "year": {">=": 2020}}."""

    @server.tool(description=f"Search the passages of {index.address}. {use} Its metadata: {index.store.fields()}")
    def search(query: str, top_k: int = 5, mode: Mode = "dense", filter: dict[str, Any] | None = None) -> list[Any]:
        try:
            return index.search(query, top_k, filter, mode)
        except InputError as error:  # the language model can mend it
            raise ToolError(str(error)) from error

    return server
