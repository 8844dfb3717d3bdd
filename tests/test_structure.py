"""What may import what, and how large things may become. docs/architecture.md says why."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinybert_hf

FOLDER = Path(tinybert_hf.__file__).parent
ROOT = FOLDER.parent
MOST_STATEMENTS = 60  # of a function, those of the functions in it included
MOST_LINES = {"modeling_tinybert.py": 450, "the package": 8_500}

# These travel to the Hub with every model; what they import travels too.
TRAVELLING = {
    "configuration_tinybert": set(),
    "modeling_tinybert": {"configuration_tinybert"},
    "pipeline_tinybert": set(),
}
# What stays out of a part: part -> what it must not import.
FORBIDDEN = {
    "index": {"training", "serving", "cli"},
    "publish": {"training", "serving", "cli"},
    "training": {"index", "publish", "serving", "cli"},
    "serving": {"training", "publish", "cli"},
}


def python_files() -> dict[str, Path]:
    """Every module of the package, named from its folder: training.setup, index, ..."""
    files = {}
    for path in FOLDER.rglob("*.py"):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "tinybert_hf"] = path
    return files


MODULES = python_files()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file, inside of functions too. Those for type checkers alone are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from import_nodes(child)


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports."""
    path = MODULES[name]
    package = path.relative_to(FOLDER).parts[:-1]
    found = set()
    for node in import_nodes(tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
        for alias in node.names:  # a module, or a name in one
            whole = ".".join((*base, alias.name))
            found.add(whole if whole in MODULES else ".".join(base) or "tinybert_hf")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_the_package_is_imported_relatively(name: str) -> None:
    for node in import_nodes(tree(MODULES[name])):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if isinstance(node, ast.Import) or not node.level:
            assert not [other for other in names if other.partition(".")[0] == "tinybert_hf"]


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_file_that_travels_imports_only_what_travels_with_it(name: str) -> None:
    assert imports(name) == TRAVELLING[name]


def test_the_kernels_know_torch_and_nothing_else() -> None:
    assert imports("kernels") == set()
    roots = set()
    for node in import_nodes(tree(MODULES["kernels"])):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        roots |= {other.partition(".")[0] for other in names}
    assert roots - set(sys.stdlib_module_names) == {"torch", "numpy"}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_the_parts_do_not_know_each_other(part: str) -> None:
    names = [name for name in MODULES if name.partition(".")[0] == part]
    assert len(names) > 1, "this test would be vacuous: the part is not there"
    for name in names:
        wrong = {other for other in imports(name) if other.partition(".")[0] in FORBIDDEN[part]}
        assert not wrong, f"{name} imports {wrong}"


def test_nothing_knows_the_command_line() -> None:
    importing = {name for name in MODULES if any(other.partition(".")[0] == "cli" for other in imports(name))}
    assert {name for name in importing if name.partition(".")[0] != "cli"} == {"__main__"}


def test_imports_go_round_in_no_circle() -> None:
    graph = {name: imports(name) - {name} for name in MODULES}
    assert sum(map(len, graph.values())) > 100, "this test would be vacuous: nothing was read"
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, {name: others & graph.keys() for name, others in graph.items()}


@pytest.mark.parametrize("name", ["", ".cli", ".errors", ".training", ".training.arguments"])
def test_what_only_asks_for_settings_imports_no_model(name: str) -> None:
    code = f"import sys, tinybert_hf{name}; print({{'torch', 'transformers', 'datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- Size ----


def statements(function: ast.AST) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1


def test_no_function_is_too_long_to_read() -> None:
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]
    sizes = {
        f"{path.relative_to(ROOT)}: {node.name}": statements(node)
        for path in [*MODULES.values(), *scripts]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert max(sizes.values()) > MOST_STATEMENTS // 3, "this test would be vacuous: nothing was counted"
    assert not {name: size for name, size in sizes.items() if size > MOST_STATEMENTS}


def test_statements_are_counted_in_functions_within_functions() -> None:
    source = """
def outer(a):
    if a:
        b = 1
    else:
        b = 2
    def inner():
        return b
    return inner
"""
    assert statements(ast.parse(source).body[0]) == 6


def test_what_travels_and_the_package_stay_small() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert lines["modeling_tinybert"] < MOST_LINES["modeling_tinybert.py"]
    assert sum(lines.values()) < MOST_LINES["the package"]
