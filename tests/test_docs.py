"""What the documents promise: commands parse, flags and linked files exist, Python blocks compile."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App

from tinybert_hf.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "log/*.md", "data/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
# What these hold is of its time: commands stand as they were run.
GUIDES = [path for path in DOCUMENTS if path.parent.name != "log" and path.name != "CHANGELOG.md"]

# How else the commands are called -> what they are called here.
SCRIPTS = {
    "train_sentiment.py": ["train", "sentiment"],
    "train_retrieval.py": ["train", "retrieval"],
    "push_to_hub.py": ["publish"],
}
# Flags of other programs that the documents name.
FOREIGN = {
    "num_processes",
    "nproc_per_node",
    "mixed_precision",
    "multi_gpu",
    "cpu",
    "help",
    "bind",
    "directory",
    "logdir",
    "upgrade",
}
# Flags that are gone. The documents may say so.
GONE = {"graph_tokens", "distillation_weight", "micro_batch_tokens"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=str)
each_guide = pytest.mark.parametrize("document", GUIDES, ids=str)


@cache
def read(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: Path, *languages: str) -> list[str]:
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, read(document), flags=re.DOTALL | re.MULTILINE)


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words of every `tinybert` command in a block of bash, without the word `tinybert`."""
    for block in blocks(document, "bash", "shell", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            # Each side of a pipe is a command of its own.
            for command in re.split(r"\s(?:\||&&|>)\s", line):
                words = shlex.split(command, comments=True)
                for name, command_words in {"tinybert": [], **SCRIPTS}.items():
                    if name in words:
                        yield [*command_words, *words[words.index(name) + 1 :]]
                        break


def flags_of(commands: App) -> set[str]:
    """The names of all flags of the commands below."""
    names: set[str] = set()
    for command in (commands[name] for name in commands if not name.startswith("-")):
        names |= flags_of(command)
        if command.default_command:
            arguments = command.assemble_argument_collection(parse_docstring=False)
            # Alone, a command does not know that the names keep their underscores.
            names |= {name[2:].replace("-", "_") for argument in arguments for name in argument.names}
    return names


@each_guide
def test_every_command_parses(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("num_train_epochs: 1\n")  # the documents' name for a recipe of one's own
    for words in command_lines(document):
        app.parse_args(words, print_error=False, exit_on_error=False)


def test_commands_are_found_and_wrong_ones_are_refused() -> None:
    """The test above is not vacuous."""
    assert len(list(command_lines(Path("docs/training.md")))) > 10
    with pytest.raises(Exception, match="--no_such_flag"):
        app.parse_args(["recipes", "--no_such_flag"], print_error=False, exit_on_error=False)


@each_guide
def test_every_flag_exists(document: Path) -> None:
    """Also those in the text. Ours have underscores; flags with a dash are of other programs."""
    named = set(re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w-])", read(document)))
    examples = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py"))
    assert named <= known_flags() | set(re.findall(r'add_argument\(\s*"--(\w+)"', examples)) | FOREIGN | GONE


def test_flags_are_found() -> None:
    """The test above is not vacuous, and no flag that is gone came back."""
    assert {"num_train_epochs", "query_column", "mined_negatives", "upsert", "onnx"} <= flags_of(app)
    assert not GONE & known_flags()


@cache
def known_flags() -> set[str]:
    return flags_of(app) | flags_of_benchmarks()


def flags_of_benchmarks() -> set[str]:
    """The fields of the benchmarks' dataclasses, and the arguments of the scripts."""
    files = [path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).glob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return set(re.findall(r"^    (\w+): .*= field\(", sources, flags=re.MULTILINE)) | set(
        re.findall(r'"--(\w+)"', sources)
    )


@each_guide
def test_python_blocks_compile(document: Path) -> None:
    for number, block in enumerate(blocks(document, "python", "py"), start=1):
        compile(block, f"{document}, Python block {number}", "exec")


@each_document
def test_linked_files_and_anchors_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", read(document), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / document).parent / file).resolve() if file else ROOT / document
        assert path.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{document}: {target}"


@cache
def anchors(path: Path) -> set[str]:
    """The places of a Markdown file that a link may name: its headings as GitHub spells them, and its own anchors."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


# Messages of other programs that the page of troubles names.
FOREIGN_MESSAGES = {
    *("tinybert: command not found", "Unknown task semantic-search", "out of memory", "make interop"),
    'Unknown option: "[NAME]" from FILE',
}


def messages() -> str:
    """All texts of the package, with a line break where a value is put in."""
    texts = []
    for path in (ROOT / "tinybert_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_page_of_troubles_quotes_messages_that_exist() -> None:
    """Word for word between the values, which stand as `...`, in capitals, in quotes or as numbers."""
    first_column = re.findall(r"^\| (.*?) \|", read(Path("docs/troubleshooting.md")), flags=re.MULTILINE)
    quoted = [text for cell in first_column for text in re.findall(r"`([^`]+)`", cell)]
    known = messages()
    checked = 0
    for text in set(quoted) - FOREIGN_MESSAGES:
        parts = re.split(r"\.\.\.|\b[A-Z][A-Z_]*\b|'[^']*'|\b\d+\b|\(looked.*", text)
        for part in (part.strip(" ,.:;(") for part in parts):
            if len(part) > 8 and " " in part:
                checked += 1
                assert part in known, f"{text!r}: {part!r}"
    assert checked > 50
