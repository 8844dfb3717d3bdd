"""What sentence-transformers makes of the same encoder, data and time as a model trained here.

    python -m benchmarks.quality --model outputs/words-retrieval --test data/debian/test

The peer has the model's configuration, tokenizer and batch size, the weights that the model began with (random ones drawn
as ours are), the same precision, the same loss in both directions, and for its training steps all the seconds of the
model's summary, those of mining and evaluation included. Its learning rate falls linearly to 0; it gets the whole
time at each of `--learning_rates`. Then `tinybert evaluate` ranks the test set with all of them. Train the model on as
many threads as this command has.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser

from benchmarks.measure import load_sentence_transformer
from benchmarks.training_runs import DIRECTIONS
from tinybert_hf import TinyBertModel
from tinybert_hf.convert_bert import Start, load_encoder
from tinybert_hf.evaluation import evaluate_model, result_table
from tinybert_hf.tokenization import save_tokenizer
from tinybert_hf.training import RetrievalArguments
from tinybert_hf.training.pairs import load_pairs


@dataclass
class QualityArguments:
    """The model to compete with, and where to measure."""

    model: str = field(metadata={"help": "A folder that `tinybert train retrieval` wrote."})
    test: str = field(metadata={"help": "A folder in BEIR layout, or the Hub id of such a data set."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 1e-2], metadata={"help": "Of the peer, one run for each."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Where to keep the result, as JSON."})


def train_peer(summary: dict[str, Any], model: str, learning_rate: float, output_dir: Path) -> int:
    """Train and save a SentenceTransformer for the seconds of a summary; returns the steps it made of them."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    seconds = summary["seconds"]
    ours = RetrievalArguments(**summary["arguments"])
    torch.manual_seed(ours.seed)
    start = (
        load_encoder(ours.model, ours.config_overrides)
        if ours.model
        else Start(AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    )
    with TemporaryDirectory() as folder:
        start.load(TinyBertModel).save_pretrained(folder)
        save_tokenizer(start.tokenizer, folder)
        peer = load_sentence_transformer(folder)
    loss = MultipleNegativesRankingLoss(
        peer, scale=1 / ours.temperature, directions=DIRECTIONS, partition_mode="per_direction"
    )

    class Clock(TrainerCallback):
        """Ends the run when its time is up; the learning rate falls with the time."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            left = 1 - (time.perf_counter() - self.started) / seconds
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * max(left, 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = time.perf_counter() - self.started > seconds

    with TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=10_000,  # the clock ends it
            per_device_train_batch_size=ours.per_device_train_batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=ours.weight_decay,
            optim="adamw_torch_fused",
            batch_sampler="no_duplicates",
            use_cpu=not torch.cuda.is_available(),
            bf16=summary["hardware"]["mixed_precision"] == "bf16",
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,  # it would count to the 10,000 epochs
            seed=ours.seed,
        )
        trainer = SentenceTransformerTrainer(
            model=peer, args=arguments, train_dataset=load_pairs(ours).train, loss=loss, callbacks=[Clock()]
        )
        trainer.train()
    peer.save_pretrained(str(output_dir))
    return trainer.state.global_step


def main() -> None:
    (arguments,) = HfArgumentParser(QualityArguments, description=__doc__).parse_args_into_dataclasses()
    with TemporaryDirectory() as folder:
        summary = json.loads(Path(arguments.model, "retrieval_summary.json").read_text(encoding="utf-8"))
        if documents := summary["arguments"]["documents"]:
            raise ValueError(
                f"{arguments.model} was trained on --documents {documents}, of which the peer has no pairs. "
                "Compare a model that was trained on --data."
            )
        peers = [Path(folder, "peer", f"sentence-transformers-{rate:g}") for rate in arguments.learning_rates]
        steps = [
            train_peer(summary, arguments.model, rate, peer)
            for rate, peer in zip(arguments.learning_rates, peers, strict=True)
        ]
        result = evaluate_model(arguments.model, arguments.test, baselines=[str(peer) for peer in peers])
    result["steps"] = {"model": summary["steps"]} | {peer.name: n for peer, n in zip(peers, steps, strict=True)}
    print(result_table(result))
    print("Steps:", ", ".join(f"{name} {n:,}" for name, n in result["steps"].items()))
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
