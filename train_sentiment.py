"""Stage one: train the encoder to classify texts (sentiment), or pairs of texts (natural language inference).

    accelerate launch train_sentiment.py                  # the full recipe: SST-2 from the Hub, for a GPU
    accelerate launch train_sentiment.py small            # minutes on a CPU, on the bundled data
    accelerate launch train_sentiment.py --data reviews.csv --text_columns review --label_column stars
    accelerate launch --num_processes 8 train_sentiment.py full                             # on eight GPUs
    python train_sentiment.py --help                      # all flags; `tinybert recipes` lists the recipes

The same as `tinybert train sentiment`, for `accelerate launch`. The code is in tinybert_hf/training/sentiment.py.
"""

import sys

from tinybert_hf.cli import main as tinybert


def main() -> None:
    tinybert(["train", "sentiment", *sys.argv[1:]])


if __name__ == "__main__":
    main()
