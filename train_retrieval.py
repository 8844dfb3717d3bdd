"""Stage two: train the encoder to match a query to its answer, with in-batch negatives.

    accelerate launch train_retrieval.py full                               # Natural Questions, after stage one, for a GPU
    accelerate launch train_retrieval.py minilm --data pairs.csv            # the best model per minute of a CPU
    accelerate launch train_retrieval.py minilm --data faq.csv --query_column question --answer_column reply
    accelerate launch train_retrieval.py minilm --documents notes.jsonl --text_column body      # no queries: spans of the texts
    accelerate launch --num_processes 8 train_retrieval.py full             # on eight GPUs
    python train_retrieval.py --help                                        # all flags; `tinybert recipes` lists the recipes

The same as `tinybert train retrieval`, for `accelerate launch`. The code is in tinybert_hf/training/retrieval.py.
"""

import sys

from tinybert_hf.cli import main as tinybert


def main() -> None:
    tinybert(["train", "retrieval", *sys.argv[1:]])


if __name__ == "__main__":
    main()
