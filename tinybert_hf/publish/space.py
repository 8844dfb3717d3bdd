"""A page that searches with a model, for a static Space: the files of `space/`, which run in the visitor's browser."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from yaml import YAMLError

from ..convert_bert import read_prompts
from ..data import EXAMPLES_FILE
from ..errors import MissingFileError
from ..files import read_json, sha256
from .folder import replace_whole

SPACE_FILES = Path(__file__).with_name("space")
SPACE_SETTINGS = "settings.js"  # the one file of the page that differs from Space to Space
NPM = "https://cdn.jsdelivr.net/npm"  # the page takes its libraries from here
TRANSFORMERS_JS = "4.3.1"
BROWSER_MODEL = "onnx/model_quantized.onnx"  # onnx.INT8_FILE, which only its extra can import


def build_space(output_dir: Path, space_id: str, model: Path, pushed_model: tuple[str, str] | None) -> Path:
    """Write the page that a static Space shows: visitors search their own passages with the model.

    The NAME of `space_id`, OWNER/NAME, becomes the title. `model` is a folder from `build_folder`. `pushed_model` is the Hub
    id and the commit that the page loads. None makes a page to try here, which loads `model`, a folder with ONNX models, and
    must be served from a folder above both. Returns: `output_dir`.
    """
    if pushed_model:
        endpoint = HfApi().endpoint
        name, revision = pushed_model
        # A commit, not a branch: browsers keep what they loaded by its address.
        place = {"host": endpoint, "path": "{model}/resolve/{revision}/", "link": f"{endpoint}/{name}"}
    else:
        if not (model / BROWSER_MODEL).is_file():
            raise MissingFileError(f"{model} has no {BROWSER_MODEL}, which the page runs; add --onnx.")
        above = Path(os.path.relpath(model, output_dir)).parent.as_posix()
        name, revision = model.name, sha256(model / BROWSER_MODEL)  # browsers keep what it encoded
        place = {"host": f"{above}/", "path": "{model}/", "link": f"{above}/{name}/"}
    settings: dict[str, Any] = {"model": name, "revision": revision, **place, "prompts": read_prompts(str(model), None)}
    with suppress(ValueError, YAMLError):  # a card that somebody else wrote
        settings["languages"] = ModelCard.load(model / "README.md").data.language
    settings |= {"npm": NPM, "version": TRANSFORMERS_JS, "examples": read_json(model / EXAMPLES_FILE)}
    with replace_whole(output_dir) as folder:
        shutil.copytree(SPACE_FILES, folder, dirs_exist_ok=True)
        script = f"// Written by push_to_hub.py --space.\nexport const settings = {json.dumps(settings, indent=2)};\n"
        (folder / SPACE_SETTINGS).write_text(script, encoding="utf-8")
        card = {"title": json.dumps(space_id.split("/")[-1]), "models": json.dumps([name] if pushed_model else [])}
        text = (folder / "README.md").read_text(encoding="utf-8").format(name=name, link=place["link"], **card)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return output_dir
