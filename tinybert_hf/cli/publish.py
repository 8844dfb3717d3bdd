"""tinybert publish: a model folder to the Hugging Face Hub."""

from pathlib import Path
from tempfile import gettempdir

from ..errors import InputError, import_extra
from .terminal import hide_loading, log_progress


def publish(
    *,
    model: Path,
    repo_id: str | None = None,
    output_dir: Path | None = None,
    license: str | None = None,
    language: list[str] | None = None,
    base_model: str | None = None,
    dataset: list[str] | None = None,
    examples: Path | None = None,
    onnx: bool = False,
    space: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    revision: str = "main",
    overwrite_readme: bool = False,
) -> None:
    """Publish a trained model: make a complete folder with a model card, and push it to the Hugging Face Hub.

        tinybert publish --model outputs/retrieval --repo_id OWNER/NAME
        tinybert publish --model outputs/retrieval --repo_id OWNER/NAME --create_pr     # someone else's model
        tinybert publish --model outputs/retrieval --output_dir outputs/published       # only the folder, no Hub
        tinybert publish --model outputs/retrieval --repo_id OWNER/NAME --onnx --space OWNER/NAME-demo  # and a page

    Log in once with `hf auth login`. If the command fails, run it again: what is on the Hub already is not sent twice.

    Args:
        model: The folder of a training run.
        repo_id: OWNER/NAME on the Hub.
        output_dir: Keep the complete folder here. Without --repo_id, build it and stop.
        license: The licence, as the Hub abbreviates it. By default that of the model that training started from.
        language: The languages, such as en or de. By default those of the model that training started from.
        base_model: Hub id of the model that training started from. By default as the training's summary says.
        dataset: Hub ids of the training data. By default as the training's summary says.
        examples: A file (query, answer; or text) whose texts card and page show to everybody who sees the model. By
            default, they show 12 of the rows that training held out, of each text the first 200 characters.
        onnx: Add ONNX models, fp32 and int8: pip install 'tinybert_hf[onnx]'.
        space: Also publish a page on which visitors search with the model, as the static Space OWNER/NAME. It needs the
            files of --onnx, from this push or an earlier one. With --output_dir, the page is kept in OUTPUT_DIR-space.
            Without --repo_id, it is only built, so that you can try it on this machine.
        private: Make the new repository private.
        create_pr: Open a pull request.
        revision: Branch to commit to. It is made if it does not exist.
        overwrite_readme: Replace a README.md on the Hub that differs.
    """
    for flag, name in (("--repo_id", repo_id), ("--space", space)):
        if name:
            check_repo_id(flag, name)
    if space and private:
        raise InputError("--space needs a public model, and --private hides it. Leave one of them out.")
    if not repo_id and not output_dir:
        raise InputError("Pass --repo_id to push to the Hub, or --output_dir to build the folder, or both.")
    if not repo_id and (private or create_pr or revision != "main" or overwrite_readme):
        raise InputError("--private, --create_pr, --revision and --overwrite_readme need the Hub: pass --repo_id too.")
    hide_loading()  # the upload has bars of its own
    log_progress()
    import_extra("jinja2", "publish", "the model card")
    from ..files import scratch_folder
    from ..publish.folder import build_folder, list_files
    from ..publish.model_card import Origin
    from ..publish.push import push, push_space
    from ..publish.space import build_space

    with scratch_folder(Path(gettempdir()), "tinybert-publish-") as scratch:
        built = output_dir or scratch / "model"
        origin = Origin(license, language, base_model, dataset)
        folder = build_folder(model, built, repo_id or built.resolve().name, origin, onnx, examples)
        if output_dir:
            print(f"Built {output_dir}: {', '.join(sorted(list_files(folder)))}")
        if repo_id:
            url, commit = push(folder, repo_id, private, create_pr, revision, overwrite_readme)
            print(url)
        pushed_model = (repo_id, commit) if repo_id else None
        if space:
            page = build_space(folder.with_name(f"{folder.name}-space"), space, folder, pushed_model)
            if pushed_model:
                print(push_space(page, space, *pushed_model))
            else:
                server = f"python -m http.server --bind 127.0.0.1 --directory {page.parent}"
                print(f"Built {page}. To try it: {server}\nand open http://127.0.0.1:8000/{page.name}/")


def check_repo_id(flag: str, name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{flag} {name}: {error}") from error
    if "/" not in name:
        raise InputError(f"{flag} {name} names no owner; pass OWNER/NAME.")
