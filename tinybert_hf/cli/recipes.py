"""tinybert recipes: training runs that are ready to start. Each is a YAML file of flags."""

import difflib
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingFileError

FOLDER = Path(__file__).parents[1] / "recipes"


def recipes(name: str | None = None, /) -> None:
    """List the recipes, or print one.

        tinybert recipes
        tinybert recipes minilm > mine.yaml                       # edit this copy to make your own recipe
        tinybert train retrieval mine.yaml --data pairs.csv

    Args:
        name: Print this recipe, for both stages if both have one. By default all recipes are listed.
    """
    files = [path for stage in ("sentiment", "retrieval") for path in list_recipes(stage) if name in (None, path.stem)]
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
        path = Path(recipe)
        if not path.is_file():
            raise MissingFileError(f"The recipe {recipe} does not exist (looked in {Path.cwd()}).")
        return path
    names = {path.stem: path for path in list_recipes(stage)}
    if recipe not in names:
        guess = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(recipe, names, n=1))
        own = "a file of your own ends in .yaml."
        raise MissingFileError(f"There is no recipe {recipe!r}.{guess} Those for {stage} are {', '.join(names)}; {own}")
    return names[recipe]


def read_recipe(path: Path) -> Any:
    """The values of a recipe: name of a flag -> value. A mapping becomes name=value,name=value."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no valid YAML: {error}") from error
    for name, value in recipe.items() if isinstance(recipe, dict) else ():
        if isinstance(value, dict):
            recipe[name] = ",".join(f"{key}={item}" for key, item in value.items())
    return recipe
