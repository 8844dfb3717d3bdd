"""The wheel holds the whole product: installed without the checkout, it trains, publishes and searches."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fresh_process import NO_NETWORK
from training_run import ROOT, WORDS, write_pairs

TINY = "vocab_size=300,hidden_size=32,num_hidden_layers=1,num_attention_heads=4,intermediate_size=64,max_position_embeddings=32"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    # Not a .pth file: that would read this environment's own .pth files, and so find the checkout.
    Path(own, "sitecustomize.py").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    return folder / "venv"


def run(environment: Path, folder: Path, *command: str) -> str:
    """What a command of the environment prints, run in an empty folder."""
    done = subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        cwd=folder,
        env=NO_NETWORK | {"HF_HOME": str(folder / "home"), "PATH": str(environment / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_wheel_trains_both_stages_publishes_and_searches(environment: Path, tmp_path: Path) -> None:
    where = [environment / "bin" / "python", "-c", "import tinybert_hf; print(tinybert_hf.__file__)"]
    file = subprocess.run(where, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert str(environment) in file, "this test would be vacuous: it ran the checkout"
    page = Path(file.strip()).parent / "serving" / "page"
    assert {path.name for path in page.iterdir()} == {"index.html", "page.js", "style.css"}

    write_pairs(tmp_path / "pairs.csv", 200, seed=0)
    reviews = [f"{word} is good,1\n{word} is bad,0\n" for word in WORDS for _ in range(4)]
    (tmp_path / "reviews.csv").write_text("sentence,label\n" + "".join(reviews))
    (tmp_path / "lines.txt").write_text("fast music\nsmall photo\n")
    shared = ["--eval_size", "40", "--max_steps", "2", "--per_device_train_batch_size", "8"]
    start = ["--config_overrides", TINY, "--output_dir", "sentiment"]
    more = ["--model", "sentiment", "--output_dir", "retrieval"]
    commands = [  # one after the other in one process, whose imports take ten seconds
        ["train", "sentiment", "--data", "reviews.csv", *shared, *start],
        ["train", "retrieval", "--data", "pairs.csv", *shared, *more],
        ["publish", "--model", "retrieval", "--output_dir", "published"],
        ["search", "--model", "published", "--query", "music", "--chunks", "lines.txt"],
    ]
    code = f"from tinybert_hf.cli import main\nfor command in {commands!r}:\n    main(command)"
    assert "fast music" in run(environment, tmp_path, "python", "-c", code)


def test_the_wheel_brings_the_command_and_the_recipes(environment: Path, tmp_path: Path) -> None:
    assert "minilm" in run(environment, tmp_path, "tinybert", "recipes")
