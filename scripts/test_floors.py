"""Run the package with the lowest releases that pyproject.toml admits: first what loads and searches, then all extras.

python scripts/test_floors.py
python scripts/test_floors.py --python python3.10 --torch 2.7.0    # the lowest of these too: gigabytes on Linux

The environment is .floors. By default its torch is that of constraints.txt, since PyPI's builds for Linux on x86-64
bring CUDA.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
FLOORS = ROOT / ".floors"
BIN = FLOORS / ("Scripts" if os.name == "nt" else "bin")
CHUNKS = ["rename a git branch", "play music from the command line", "edit text in a terminal"]
SIZES = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=48,max_position_embeddings=32"
# Loads and saves a model with transformers alone.
STRANGER = f"""
import sys
sys.modules["tinybert_hf"] = None
from transformers import AutoModel, AutoTokenizer, pipeline
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
embeddings = model(**tokenizer({CHUNKS!r}, padding=True, return_tensors="pt")).pooler_output
assert embeddings.isfinite().all()
model.save_pretrained(folder + "-again")
tokenizer.save_pretrained(folder + "-again")
search = pipeline("semantic-search", model=folder + "-again", trust_remote_code=True)
assert search({CHUNKS[1]!r}, {CHUNKS!r}, top_k=1)[0]["index"] == 1
"""


def main() -> None:
    pinned = re.search(r"^torch==(\S+)", read("constraints.txt"), re.MULTILINE)
    assert pinned
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter; default: this one")
    parser.add_argument("--torch", default=pinned[1], help="default: %(default)s")
    # So this script runs itself, in .floors.
    parser.add_argument("--use", choices=["base", "all"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.use:
        use_base()
        if arguments.use == "all":
            use_extras()
        return

    uv("venv", "--clear", "--seed", "--python", arguments.python, str(FLOORS))
    # By pip, which finds a CPU build where the machine has one.
    run(BIN / "python", "-m", "pip", "install", "--quiet", f"torch=={arguments.torch}")
    base, extras = read("pyproject.toml").split("[project.optional-dependencies]")
    install(base)
    test("base")
    install(base + extras.split("\nall = ")[0], "--extra", "all")
    test("all")
    print(f"The floors hold, with torch {arguments.torch}.")


def install(floors: str, *extras: str) -> None:
    """Install the lowest releases, and check that they are those that `floors`, a part of pyproject.toml, names."""
    installed = FLOORS / "excludes.txt"
    installed.write_text("torch\nsympy\n")  # torch brings sympy, and may want one release of it
    pins = FLOORS / "floors.txt"
    pins.unlink(missing_ok=True)  # uv would prefer its releases
    lowest = ["--quiet", "--resolution", "lowest-direct", "--excludes", str(installed)]
    uv("pip", "compile", *lowest, *extras, "--no-annotate", "--output-file", str(pins), "pyproject.toml")
    uv("pip", "install", "--quiet", "--no-deps", "--requirement", str(pins), "--editable", ".")
    uv("pip", "check")
    chosen = dict(re.findall(r"^(\S+)==(\S+)", pins.read_text(), re.MULTILINE))
    # An extra's floor comes after the base's, and is the higher one.
    named = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', floors))
    for name in sorted(set(named) - {"setuptools", "torch"}):
        lowest_release = chosen[name.replace("_", "-")]
        if trim(lowest_release) != trim(named[name]):
            sys.exit(f"{name}>={named[name]} stands in pyproject.toml, but {lowest_release} is the lowest there is.")
        print(f"  {name} {lowest_release}")


def trim(release: str) -> str:
    """5 and 5.0.0 are one release."""
    return re.sub(r"(\.0)+$", "", release)


def test(part: str) -> None:
    """Run `use_base`, or all, in the environment."""
    print(f"Running the package ({part}).", flush=True)
    with TemporaryDirectory() as folder:
        settings = {"HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        run(BIN / "python", Path(__file__).resolve(), "--use", part, cwd=folder, env=os.environ | settings)


def use_base() -> None:
    """In a scratch folder: what needs no extra."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tinybert_hf import TinyBertConfig, TinyBertModel

    run(Path(sys.executable).with_name("tinybert"), "--help")
    names = dict.fromkeys(["[UNK]", "[PAD]", *" ".join(CHUNKS).split()])
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special)
    sizes: dict[str, Any] = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", SIZES)}
    TinyBertModel(TinyBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    run(sys.executable, "-c", STRANGER, "model")
    Path("chunks.txt").write_text("\n".join(CHUNKS))
    tinybert("search", "--model", "model-again", "--query", "music", "--chunks", "chunks.txt")


def use_extras() -> None:
    """In the same folder: both stages, publishing, measuring, mining, and an index."""
    words = [f"{first}{second}" for first in "bcdfghklmnprstvz" for second in "aeiou"]
    pairs = [f"{word} {words[i - 1]},a {words[i - 2]} {word} {words[i - 1]}" for i, word in enumerate(words)]
    Path("pairs.csv").write_text("\n".join(["query,answer", *pairs]))
    reviews = [f"a {mood} {word},{label}" for word in words for mood, label in (("good", 1), ("bad", 0))]
    Path("reviews.csv").write_text("\n".join(["text,label", *reviews]))
    Path("beir/qrels").mkdir(parents=True)
    texts = [f'{{"_id": "{i}", "text": "{text}"}}' for i, text in enumerate(CHUNKS)]
    for name in ("corpus", "queries"):
        Path(f"beir/{name}.jsonl").write_text("\n".join(texts))
    judged = [f"{i}\t{i}\t1" for i in range(len(texts))]
    Path("beir/qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))

    steps = ["--max_steps", "4", "--save_steps", "2", "--eval_size", "32", "--per_device_train_batch_size", "8"]
    reviewed = ["--data", "reviews.csv", "--text_columns", "text", "--config_overrides", SIZES]
    tinybert("train", "sentiment", *reviewed, *steps, "--output_dir", "sentiment")
    retrieval = ["train", "retrieval", "--data", "pairs.csv", *steps]
    harder = ["--mined_negatives", "1", "--matryoshka_dims", "8", "16", "--activation_budget_tokens", "16"]
    tinybert(*retrieval, *harder, "--model", "sentiment", "--output_dir", "retrieval")
    tinybert("publish", "--model", "retrieval", "--output_dir", "published", "--onnx")
    run(sys.executable, "-c", STRANGER, "published")
    taught = ["--config_overrides", SIZES, "--teacher", "published"]
    tinybert(*retrieval, *taught, "--output_dir", "taught")
    tinybert("evaluate", "--model", "taught", "--data", "beir", "--baselines", "published")
    mined = ["mine", "--data", "pairs.csv", "--num_negatives", "1", "--output_file"]
    tinybert(*mined, "by_words.jsonl")
    tinybert(*mined, "by_model.jsonl", "--model", "published")
    use_index("packages.index")
    serve_documents()

    sys.path.insert(0, str(ROOT / "tests"))
    from milvus_server import PYTHON, milvus_server

    if PYTHON.is_file():
        Path("milvus").mkdir()
        with milvus_server("milvus-lite", Path("milvus").resolve()) as address:
            use_index(f"{address}/packages")
    else:
        print("No index on a Milvus server was made: `make interop` installs one.")


def serve_documents() -> None:
    """Read, cut and index a folder, and ask its server and its tool."""
    from fastapi.testclient import TestClient

    from tinybert_hf import SearchIndex
    from tinybert_hf.serving.app import Service
    from tinybert_hf.serving.mcp import create_server

    Path("notes").mkdir()
    Path("notes/git.md").write_text("# Branches\n\nrename a git branch\n")
    tinybert("index", "sync", "notes.index", "notes", "--model", "published")
    index = SearchIndex("notes.index")
    with TestClient(Service(index, None).app, base_url="http://127.0.0.1") as client:
        assert client.get("/search", params={"q": "git"}).json()[0]["file"] == "git.md"
    create_server(index)


def use_index(index: str) -> None:
    records = ["--data", "beir/corpus.jsonl", "--id_column", "_id"]
    tinybert("index", "build", "--index", index, "--model", "published", *records)
    tinybert("index", "search", "--index", index, "--query", "music", "--mode", "hybrid")


def tinybert(*arguments: str) -> None:
    """Run a command in this process, whose imports are done."""
    from tinybert_hf.cli import main as command

    print("tinybert", *arguments, flush=True)
    command(arguments)


def uv(*arguments: str) -> None:
    settings = {"VIRTUAL_ENV": str(FLOORS), "UV_PYTHON_DOWNLOADS": "never"}
    run(Path(sys.executable).with_name("uv"), *arguments, cwd=ROOT, env=os.environ | settings)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run(*command: str | Path, **options: Any) -> None:
    """Run a command; if it fails, print its last words and end."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, text=True, check=False, **streams, **options)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\nfailed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()
