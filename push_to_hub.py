"""Publish a trained model: a complete folder with a model card, then one commit to the Hugging Face Hub.

    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --create_pr     # someone else's model
    python push_to_hub.py --model outputs/retrieval --output_dir outputs/published       # only the folder, no Hub
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --onnx          # for ONNX Runtime too
    python push_to_hub.py --model outputs/retrieval --repo_id OWNER/NAME --onnx --space OWNER/NAME-demo  # and a page

Log in once with `hf auth login`. After any failure the same command may be run again: what is on the Hub already is
not sent twice. The same as `tinybert publish`. The code is in tinybert_hf/publish/.
"""

import sys

from tinybert_hf.cli import main as tinybert


def main() -> None:
    tinybert(["publish", *sys.argv[1:]])


if __name__ == "__main__":
    main()
