"""The training loop: step, evaluate, save, go on, summarise. Both stages run it.

A run's folder:

    output_dir/
      checkpoint-<step>/     a model folder that also holds optimizer, random states, and the run's state and history
      <model files>          the best checkpoint's, when the run is over
      <stage>_summary.json   data, settings, versions, hardware, time and results; written last

A checkpoint is renamed when it is complete, so a killed run leaves only whole ones. Its manifest tells whether it still is
what was written. docs/architecture.md tells why a run that goes on ends with the very bytes of an uninterrupted one.
"""

import json
import logging
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import load, send_to_device, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import std
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel, get_scheduler

from ..data import EXAMPLES_FILE, describe_data, pick_examples
from ..errors import InputError, UnreadableError
from ..files import MANIFEST, explained, find_damage, flush, put_in_place, write_json, write_manifest
from ..kernels import SparseEmbeddingGradient
from ..progress import progress_bar
from ..tokenization import save_tokenizer
from . import report
from .arguments import TrainingArguments
from .checkpoints import STATE_FILE, list_checkpoints
from .gradients import average_gradients
from .launch import StopSignal
from .sampler import choose_epochs
from .stage import Stage

logger = logging.getLogger(__name__)

MODEL_FILES = (".safetensors", ".json", ".py")  # of a checkpoint, what makes it a model folder
STAGE_FILE = "stage.safetensors"  # what the stage keeps; part of a checkpoint, not of a model
# What may differ between a run and its continuation without changing a single weight.
MAY_CHANGE_ON_RESUME = {"output_dir", "resume_from_checkpoint", "logging_steps", "report_to"}


@dataclass
class TrainingState:
    """What a run remembers besides tensors; saved as JSON in every checkpoint."""

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # measures of the best step
    start: dict[str, float] = field(default_factory=dict)  # and of step 0
    num_worse: int = 0  # evaluations since the best
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)  # what must be the same in a continuation
    schedule: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """One run of one stage; `train` is its loop."""

    def __init__(self, arguments: TrainingArguments, accelerator: Accelerator, stage: Stage) -> None:
        self.arguments, self.accelerator, self.stage, self.sampler = arguments, accelerator, stage, stage.sampler
        self.output_dir = Path(arguments.output_dir)
        num_epochs = choose_epochs(arguments.num_train_epochs, self.sampler.steps_per_epoch)
        num_steps = max(1, round(num_epochs * self.sampler.steps_per_epoch))
        self.max_steps = arguments.max_steps if arguments.max_steps > 0 else num_steps
        self.save_steps = int(arguments.save_steps) or max(1, round(arguments.save_steps * self.max_steps))
        drops = stage.model.config.attention_probs_dropout_prob > 0
        if accelerator.device.type == "cpu" and (drops or accelerator.mixed_precision == "bf16"):
            # No fused attention of a CPU has dropout, and in bf16 its backward pass takes three times as long.
            stage.model.set_attn_implementation("eager")
        # This leaves out DistributedDataParallel, whose part `average_gradients` has.
        self.model = accelerator.prepare_model(stage.model, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(stage.model, arguments))
        self.embedding_gradient = SparseEmbeddingGradient(self.stage.model.get_input_embeddings())
        # Not prepared: accelerate's wrapper would step it once for every process.
        self.schedule = build_schedule(self.optimizer, arguments, self.max_steps)
        # accelerate keeps all but the model: that is saved as a model folder, and loaded when it is built.
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
        identity = {k: v for k, v in self._arguments().items() if k not in MAY_CHANGE_ON_RESUME}
        identity |= {"num_rows": self.sampler.num_rows, "num_processes": accelerator.num_processes}
        self.state = TrainingState(run=identity | {"mixed_precision": accelerator.mixed_precision})
        set_seed(arguments.seed, device_specific=True)  # every process draws its own dropout masks

    def train(self) -> dict[str, Any]:
        """Run, or go on after `resume`, to the last step; returns the run's summary."""
        settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in self._arguments().items()}
        self.accelerator.init_trackers(self.stage.name, settings)
        facts, epochs = self.stage.facts(), self.max_steps / self.sampler.steps_per_epoch
        logger.info(report.plan(self.stage.unit, facts, self.max_steps, self.sampler.rows_per_step, epochs))
        started = time.perf_counter() - self.state.seconds
        if not self.state.history:
            self._evaluate()
            self._save_checkpoint()  # what training starts from may stay the best
        options = {"initial": self.state.step, "unit": "step", "disable": not self.accelerator.is_main_process}
        bar = progress_bar(total=self.max_steps, desc=f"Training ({self.stage.name})", dynamic_ncols=True, **options)
        with StopSignal() as stop, logging_redirect_tqdm(), bar:
            self._loop(bar, stop, started)
        return self._finish()

    def _loop(self, bar: std.tqdm, stop: StopSignal, started: float) -> None:
        losses: list[Tensor] = []
        window = time.perf_counter()
        patience = self.arguments.early_stopping_patience or sys.maxsize
        while (step := self.state.step) < self.max_steps and self.state.num_worse < patience:
            self.stage.prepare(self.stage.model, step)
            losses += [self._micro_step(self.stage.batch(rows, step)) for rows in self.sampler.micro_batches(step)]
            self.state.step += 1
            self.state.seconds = time.perf_counter() - started
            bar.update()
            if self.state.step % self.arguments.logging_steps == 0:
                self._report(bar, losses, time.perf_counter() - window)
                losses, window = [], time.perf_counter()
            last = self.state.step == self.max_steps
            if last or self.state.step % self.save_steps == 0:
                paused = time.perf_counter()
                self._evaluate()
                self.state.seconds = time.perf_counter() - started
                self._save_checkpoint()
                window += time.perf_counter() - paused  # the texts per second are those of training
            if stop.received(self.accelerator) and not last:
                self._save_checkpoint()
                saved = f"step {self.state.step} of {self.max_steps} is saved in {self.output_dir}"
                logger.warning("Stopped by a signal; %s. Continue with --resume_from_checkpoint auto.", saved)
                self.accelerator.end_training()
                sys.exit(128 + (stop.number or signal.SIGTERM))

    def _micro_step(self, batch: Any) -> Tensor:
        """Forward, backward and, after the last batch of a step, the update; returns the loss without graph."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            loss = self.stage.backward(self.model, send_to_device(batch, self.accelerator.device))
            if self.accelerator.sync_gradients:
                self.embedding_gradient.finish()
                average_gradients(self.accelerator, self.model)
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.embedding_gradient.clear()
                if not self.accelerator.optimizer_step_was_skipped:
                    self.schedule.step()
        return loss

    def _report(self, bar: std.tqdm, losses: list[Tensor], seconds: float) -> None:
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        if loss != loss:
            remedy = f"Lower --learning_rate; the last checkpoint in {self.output_dir} is intact."
            raise FloatingPointError(f"The loss is not a number at step {self.state.step}. {remedy}")
        texts = self.sampler.batch_size * self.accelerator.num_processes * self.stage.texts_per_row
        rate, speed = float(self.schedule.get_last_lr()[-1]), len(losses) * texts / seconds
        bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.1e}, {speed:.0f} texts/s", refresh=False)
        self._record({"loss": loss, "learning_rate": rate, "texts_per_second": speed})

    def _record(self, values: dict[str, float]) -> None:
        self.state.history.append({"step": self.state.step, **values})
        grouped = {f"eval/{k[5:]}" if k.startswith("eval_") else f"train/{k}": v for k, v in values.items()}
        self.accelerator.log(grouped, step=self.state.step)

    def _evaluate(self) -> None:
        """Measure on the held-out data, and remember whether this is the best step so far."""
        measures, state, key = self.stage.evaluate(self.stage.model), self.state, self.stage.best_measure
        self._record({f"eval_{name}": value for name, value in measures.items()})
        logger.info("step %d: %s", state.step, ", ".join(f"{name} {value:.4f}" for name, value in measures.items()))
        state.start = state.start or measures
        state.num_worse += 1
        if not state.best or measures[key] > state.best[key]:
            state.best, state.best_step, state.num_worse = measures, state.step, 0

    def _save_checkpoint(self) -> None:
        """Write `checkpoint-<step>` whole or not at all, then drop all but it and the best."""
        folder = self.output_dir / f"checkpoint-{self.state.step}"
        if folder.exists() and find_damage(folder) is None:
            return  # the run was resumed from an earlier one; this step's bytes are the same
        unfinished = self.output_dir / f"unfinished-{folder.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with explained(self.output_dir, "The run is safe: mend this, and continue with --resume_from_checkpoint auto."):
            self.accelerator.save_state(str(unfinished))
            if self.accelerator.is_main_process:
                self.stage.model.save_pretrained(unfinished)
                save_tokenizer(self.stage.tokenizer, unfinished)
                save_file(self.stage.state_dict(), unfinished / STAGE_FILE)
                self.state.schedule = self.schedule.state_dict()
                write_json(unfinished / STATE_FILE, asdict(self.state))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                write_manifest(unfinished)
                if folder.exists():  # damaged
                    folder.rename(self.output_dir / f"unfinished-{folder.name}-damaged")
                put_in_place(unfinished, folder)
                for path in list_checkpoints(self.output_dir):
                    if path.name not in (folder.name, f"checkpoint-{self.state.best_step}"):
                        shutil.rmtree(path.rename(path.with_name(f"unfinished-{path.name}")))
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Path) -> None:
        """Go on where the checkpoint stopped, its model being loaded already.

        Raises: InputError: if it belongs to another run. UnreadableError: if it, or the best so far, is damaged.
        """
        try:
            saved = TrainingState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise UnreadableError(f"{checkpoint / STATE_FILE} is damaged: {error}") from error
        was, now = saved.run, self.state.run
        if differences := [f"{k} was {was.get(k)}, now {now[k]}" for k in now if was.get(k) != now[k]]:
            raise InputError(
                f"{checkpoint} belongs to another run: {'; '.join(differences)}. Resume with the same settings, or "
                f"start a new run from its weights: --model {checkpoint} and another --output_dir."
            )
        self._bring_best(checkpoint, saved.best_step)
        try:
            # accelerate runs no code of what it loads, but would go on with other random states.
            states = load(checkpoint / f"random_states_{self.accelerator.process_index}.pkl")
            self.accelerator.load_state(str(checkpoint))
            wanted = [states["torch_manual_seed"], *states.get("torch_cuda_manual_seed", [])]
            found = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
            if len(found) < len(wanted) or not all(map(torch.equal, wanted, found)):
                raise ValueError("its random states do not fit the devices of this machine.")
            self.stage.load_state_dict(load_file(checkpoint / STAGE_FILE))
        except Exception as error:  # unpicklers fail in many ways
            raise UnreadableError(
                f"{checkpoint} cannot be resumed: {error} Nothing in it was run. Start a new run from its weights: "
                f"--model {checkpoint} and another --output_dir."
            ) from error
        self.schedule.load_state_dict(saved.schedule)
        self.state = saved
        logger.info("Resumed %s at step %d of %d.", checkpoint, saved.step, self.max_steps)

    def _bring_best(self, checkpoint: Path, best_step: int) -> None:
        """See that `output_dir` has the best checkpoint so far, of which the end of the run makes the model."""
        best = checkpoint.with_name(f"checkpoint-{best_step}")
        if best != checkpoint and (reason := find_damage(best)):
            raise UnreadableError(
                f"{best}, the best checkpoint so far, is not whole: {reason}. Restore it from a copy, or start a new run "
                f"from the last weights: --model {checkpoint} and another --output_dir."
            )
        kept = self.output_dir / best.name
        if self.accelerator.is_main_process and not kept.exists():  # resumed into another folder
            put_in_place(shutil.copytree(best, kept.with_name(f"unfinished-{best.name}"), dirs_exist_ok=True), kept)

    def _finish(self) -> dict[str, Any]:
        """Put the best checkpoint's model into `output_dir`, write the summary, and tell the result."""
        summary = self._summary()
        if self.accelerator.is_main_process:
            best = self.output_dir / f"checkpoint-{self.state.best_step}"
            for path in best.iterdir():
                if path.suffix in MODEL_FILES and path.name not in (STATE_FILE, STAGE_FILE, MANIFEST):
                    flush(Path(shutil.copyfile(path, self.output_dir / path.name)))
            start = self.arguments.model  # how it was trained is told too
            for path in Path(start).glob("*_summary.json") if start else ():
                shutil.copyfile(path, self.output_dir / path.name)
            summary |= self.stage.finish(self.output_dir)
            write_json(self.output_dir / EXAMPLES_FILE, pick_examples(self.stage.data.evaluation))
            write_json(self.output_dir / f"{self.stage.name}_summary.json", summary)
            flush(self.output_dir)
            for path in self.output_dir.glob("unfinished-checkpoint-*"):
                shutil.rmtree(path, ignore_errors=True)
            if self.state.step < self.max_steps:
                logger.info("Stopped at step %d: nothing better since step %d.", self.state.step, self.state.best_step)
            anew = {"ranked anew": summary["rerank"]["results"]} if "rerank" in summary else {}
            systems = {"before": summary["start"], "after": summary["results"], **anew, **summary["baselines"]}
            table = pd.DataFrame(systems).to_string(float_format="{:.3f}".format, na_rep="", col_space=7)
            logger.info("On the held-out %s:\n%s", self.stage.unit, table)
            if not self.state.best_step:
                logger.warning("Training did not make the model better: the weights that it started from are kept.")
            logger.info("The model of step %d is in %s.", self.state.best_step, self.output_dir)
            logger.info("What to do with it:\n%s", report.next_commands(self.stage.name, self.output_dir))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return summary

    def _arguments(self) -> dict[str, Any]:
        """The arguments as JSON takes them; data that was given in Python by its kind and size."""
        data = ("data", "eval_data", "documents")
        return {k: describe_data(v) if k in data and v is not None else v for k, v in vars(self.arguments).items()}

    def _summary(self) -> dict[str, Any]:
        said, places = self._arguments(), ("data", "documents", "eval_data", "model", "output_dir", "teacher")
        whole = {k: str(Path(said[k]).absolute()) for k in places if said.get(k) and Path(said[k]).exists()}
        return {
            "stage": self.stage.name,
            "data": self.stage.facts() | {"texts_per_row": self.stage.texts_per_row},
            "arguments": said | whole,  # a folder from where it is could be taken for a Hub id elsewhere
            "parameters": sum(parameter.numel() for parameter in self.stage.model.parameters()),
            "steps": self.state.step,
            "epochs": round(self.state.step / self.sampler.steps_per_epoch, 2),
            "rows_per_step": self.sampler.rows_per_step,
            "seconds": round(self.state.seconds, 1),
            "best_step": self.state.best_step,
            "start": self.state.start,
            "results": self.state.best,
            "baselines": self.stage.baselines(),
            "history": self.state.history,
            **report.describe_machine(self.accelerator),
        }


def build_optimizer(model: PreTrainedModel, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), decaying matrices only; the token embedding has its own rate."""
    embedding = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not embedding]
    embedding_learning_rate = arguments.embedding_learning_rate or arguments.learning_rate
    return torch.optim.AdamW(
        [
            {"params": [embedding], "weight_decay": arguments.weight_decay, "lr": embedding_learning_rate},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": arguments.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=arguments.learning_rate,
        fused=True,  # one pass over each tensor: a tenth of the time on a CPU
    )


def build_schedule(optimizer: torch.optim.Optimizer, arguments: TrainingArguments, max_steps: int) -> LambdaLR:
    """The schedule that `transformers` calls `arguments.lr_scheduler_type`, after a linear warm-up."""
    return get_scheduler(arguments.lr_scheduler_type, optimizer, round(arguments.warmup_ratio * max_steps), max_steps)
