"""tinybert recipes: training runs that are ready to start. Each is a YAML file of flags."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingFileError

FOLDER = Path(__file__).parents[1] / "recipes"
STAGES = ("sentiment", "retrieval")


def recipes(name: str | None = None, /) -> None:
    """List the recipes, or print one.

        tinybert recipes
        tinybert recipes minilm > mine.yaml                       # a start for a recipe of your own
        tinybert train retrieval mine.yaml --data pairs.csv

    Args:
        name: Print this recipe, of both stages where both have it. Without it, all are listed.
    """
    files = [path for stage in STAGES for path in list_recipes(stage) if name in (None, path.stem)]
    if not files:
        raise MissingFileError(f"There is no recipe {name}. `tinybert recipes` lists them.")
    for path in files:
        command = f"tinybert train {path.parent.name} {path.stem}"
        text = path.read_text(encoding="utf-8")
        print(f"# {command}\n{text}" if name else f"{command:32} {text.splitlines()[0].removeprefix('# ')}")


def list_recipes(stage: str) -> list[Path]:
    return sorted((FOLDER / stage).glob("*.yaml"))


def find_recipe(stage: str, recipe: str) -> Path:
    """The file of a recipe that is named, or given as a path that ends in .yaml or .yml."""
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise MissingFileError(f"The recipe {recipe} does not exist (looked in {Path.cwd()}).")
        return path
    names = [path.stem for path in list_recipes(stage)]
    if recipe not in names:
        raise MissingFileError(
            f"There is no recipe {recipe!r}.{did_you_mean(recipe, names)} Those for {stage} are {', '.join(names)}; a file "
            "of your own ends in .yaml."
        )
    return FOLDER / stage / f"{recipe}.yaml"


def read_recipe(path: Path, known: Iterable[str]) -> dict[str, list[str]]:
    """The values of a recipe as the command line has them: name of a flag -> its words."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(recipe, Mapping):
        raise InputError(f"{path} must hold 'name: value' lines, got {type(recipe).__name__}.")
    known = list(known)
    for name, value in recipe.items():
        if name not in known:
            raise InputError(f"{path}: {name!r} is no training argument.{did_you_mean(str(name), known)} See --help.")
        if value is None:
            raise InputError(f"{path}: {name} has no value; give it one, or remove the line.")
    return {name: words(value) for name, value in recipe.items()}


def words(value: Any) -> list[str]:
    """A value of YAML as words of a command line.

    >>> words([64, 128]), words(5e-4), words({"pooling": "mean", "hidden_size": 8})
    (['64', '128'], ['0.0005'], ['pooling=mean,hidden_size=8'])
    """
    if isinstance(value, Mapping):
        return [",".join(f"{name}={item}" for name, item in value.items())]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    guess = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {guess[0]}?" if guess else ""
