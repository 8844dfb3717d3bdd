"""tinybert serve and tinybert mcp: an index for others."""

from typing import Annotated

from cyclopts import Parameter

from ..errors import InputError, import_extra
from .index import Address

ApiKey = Annotated[str | None, Parameter(env_var="TINYBERT_API_KEY")]
Model = Annotated[str | None, Parameter(help="The model that made the index, if it lies elsewhere now.")]


def serve(
    address: Address, *, model: Model = None, host: str = "127.0.0.1", port: int = 8000, api_key: ApiKey = None
) -> None:
    """Serve an index over HTTP: a page to search it, GET /search, OpenAI's POST /v1/embeddings, /healthz, /metrics.

        tinybert serve packages.index        # then open http://127.0.0.1:8000

    Args:
        host: Address to listen on. Any address but this machine's own (127.0.0.1) needs --api_key.
        port: Port to listen on. 0 takes any free port.
        api_key: Key that requests must send as `Authorization: Bearer KEY`. Safer in the variable TINYBERT_API_KEY.
    """
    if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        raise InputError(f"--host {host} lets other machines in: pass --api_key too, or set TINYBERT_API_KEY.")
    app = import_extra("tinybert_hf.serving.app", "serve", "serving")
    service = app.Service(address.open(model), api_key)
    # An access log would hold the questions.
    options = {"headers": [*app.HEADERS.items()], "access_log": False, "timeout_graceful_shutdown": 30}
    import_extra("uvicorn", "serve", "serving").run(service.app, host=host, port=port, **options)


def mcp(address: Address, *, model: Model = None) -> None:
    """Let chatbots search an index: a tool of the Model Context Protocol (MCP), over standard input and output.

    tinybert mcp packages.index
    """
    import_extra("tinybert_hf.serving.mcp", "mcp", "the protocol").create_server(address.open(model)).run("stdio")
