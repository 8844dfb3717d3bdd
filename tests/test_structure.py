"""The package is flat and data flows one way: a module imports only from those above it in this list."""

import ast
from pathlib import Path

import tinybert_hf

ORDER = [
    "configuration_tinybert",
    "modeling_tinybert",
    "pipeline_tinybert",
    "onnx",
    "data",
    "tokenization",
    "documents",
    "batching",
    "losses",
    "gradients",
    "arguments",
    "bert",
    "checkpoints",
    "search",
    "evaluation",
    "mine_negatives",
    "teacher",
    "launch",
    "training",
    "model_card",
    "hub",
    "convert_checkpoint",
    "index_records",
    "index_folder",
    "index_milvus",
    "index",
]


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, at its top or inside a function."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level and node.module}


def test_a_module_imports_only_from_those_above_it() -> None:
    folder = Path(tinybert_hf.__file__).parent
    modules = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(ORDER)
    for name, path in modules.items():
        below = imports(path) - set(ORDER[: ORDER.index(name)])
        assert not below, f"{name} imports {below}"
