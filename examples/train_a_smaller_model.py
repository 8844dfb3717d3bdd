"""A model of fewer layers that learns the embeddings of a trained one. It needs texts alone, no pairs.

    python examples/train_a_smaller_model.py outputs/published outputs/three-layers --layers 3 --texts passages.jsonl questions.txt
    tinybert evaluate --model outputs/three-layers --data data/debian/test

The student starts with some of the teacher's layers, evenly spaced, and is trained by sentence-transformers to give each text
the teacher's embedding (mean squared error; Reimers and Gurevych 2020, arXiv:2004.09813). TEACHER is a folder that `tinybert
publish` made, of a model that started from a BERT. The result is a SentenceTransformer (release 6), which
`tinybert` loads too.
"""

import argparse
import copy
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss

from tinybert_hf.data import iterate_texts, load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path, help="the folder to make")
    parser.add_argument(
        "--texts", nargs="+", required=True, help="data as `tinybert train` takes it; every text is used"
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()

    texts = list(dict.fromkeys(text for data in arguments.texts for text in iterate_texts(load_data(data))))
    teacher = SentenceTransformer(str(arguments.teacher))
    student = copy.deepcopy(teacher)
    bert = student[0].model
    count = len(bert.encoder.layer)
    if not 1 <= arguments.layers <= count:
        parser.error(f"--layers must be from 1 to {count}, the layers of {arguments.teacher}, got {arguments.layers}.")
    kept = torch.linspace(0, count - 1, arguments.layers).round().int().tolist()
    bert.encoder.layer = torch.nn.ModuleList(bert.encoder.layer[number] for number in kept)
    bert.config.num_hidden_layers = arguments.layers

    embeddings = teacher.encode(texts, show_progress_bar=True, normalize_embeddings=True)
    rows = Dataset.from_dict({"sentence": texts, "label": list(embeddings)})
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(arguments.student / "training"),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.1,  # a share of all steps
        save_strategy="no",
        report_to="none",
    )
    SentenceTransformerTrainer(student, settings, train_dataset=rows, loss=MSELoss(student)).train()
    student.save_pretrained(str(arguments.student))
    print(
        f"{arguments.student}: layers {', '.join(str(number + 1) for number in kept)} of {count}, trained on {len(texts):,} texts."
    )


if __name__ == "__main__":
    main()
