"""Publish a trained model: a complete folder with a model card, then one commit to the Hugging Face Hub.

    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --create_pr     # someone else's model
    python push_to_hub.py --model outputs/retrieval --output_dir outputs/published       # only the folder, no Hub
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --onnx          # for ONNX Runtime too
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --onnx --space OWNER/NAME-demo  # and a page

Log in once with `hf auth login`. After any failure the same command may be run again: what is on the Hub already is
not sent twice.
"""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser
from transformers.utils import logging

from tinybert_hf.arguments import HelpFormatter, errors_as_messages
from tinybert_hf.hub import build_folder, build_space, list_files, push, push_space


@dataclass
class PushArguments:
    """What to publish, and where."""

    model: str = field(metadata={"help": "A model folder, as training leaves it."})
    repo_id: str | None = field(default=None, metadata={"help": "OWNER/NAME on the Hub."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Keep the complete folder here; without --repo_id, build it and stop."},
    )
    license: str = field(
        default="apache-2.0", metadata={"help": "The model's licence, as the Hub abbreviates it."}
    )
    onnx: bool = field(
        default=False, metadata={"help": "Add ONNX models, fp32 and int8: pip install 'tinybert_hf[onnx]'."}
    )
    space: str | None = field(
        default=None,
        metadata={
            "help": "Publish a page on which visitors search with the model, the static Space OWNER/NAME. It runs the "
            "ONNX model of --onnx, of this push or an earlier one. With --output_dir, keep the page in "
            "OUTPUT_DIR-space; without --repo_id, that page is for trying here."
        },
    )
    private: bool = field(default=False, metadata={"help": "Create the repository private."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request."})
    revision: str = field(default="main", metadata={"help": "Branch to commit to; created where it is new."})
    overwrite_readme: bool = field(
        default=False, metadata={"help": "Replace a README.md on the Hub that differs."}
    )

    def __post_init__(self) -> None:
        for flag, name in (("--repo_id", self.repo_id), ("--space", self.space)):
            if name:
                validate_repo_id(name)
                if "/" not in name:
                    raise ValueError(f"{flag} {name} names no owner; pass OWNER/NAME.")
        if self.space and self.private:
            raise ValueError(
                "--space shows the model to everyone, and --private to nobody else; leave one out."
            )
        if self.repo_id:
            return
        if not self.output_dir:
            raise ValueError(
                "Pass --repo_id to push to the Hub, or --output_dir to build the folder, or both."
            )
        if self.private or self.create_pr or self.revision != "main" or self.overwrite_readme:
            raise ValueError(
                "--private, --create_pr, --revision and --overwrite_readme are about the Hub: pass --repo_id too."
            )


def main() -> None:
    parser = HfArgumentParser(
        PushArguments, description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False
    )
    try:
        (arguments,) = parser.parse_args_into_dataclasses()
    except ValueError as error:
        parser.error(str(error))
    logging.disable_progress_bar()  # loading and saving take a moment; the upload has bars of its own
    with errors_as_messages(), TemporaryDirectory() as scratch:
        folder = build_folder(
            Path(arguments.model),
            Path(arguments.output_dir or f"{scratch}/model"),
            arguments.repo_id or arguments.output_dir,
            arguments.license,
            arguments.onnx,
        )
        if arguments.output_dir:
            print(f"Built {arguments.output_dir}: {', '.join(sorted(list_files(folder)))}")
        pushed = None
        if arguments.repo_id:
            pushed = push(
                folder,
                arguments.repo_id,
                private=arguments.private,
                create_pr=arguments.create_pr,
                revision=arguments.revision,
                overwrite_readme=arguments.overwrite_readme,
            )
        if arguments.space:
            place = folder.with_name(f"{folder.name}-space")
            model = (arguments.repo_id, pushed.commit) if pushed else None
            page = build_space(place, arguments.space, folder, model)
            if model:
                push_space(page, arguments.space, *model)
            else:
                print(
                    f"Built {place}. To try it: python -m http.server --bind 127.0.0.1 --directory {page.parent}\n"
                    f"and open http://127.0.0.1:8000/{page.name}/"
                )


if __name__ == "__main__":
    main()
