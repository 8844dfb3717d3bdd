"""The one training loop: step, evaluate, save, resume, summarise. Both stages run it.

A run's folder:

    output_dir/
      checkpoint-<step>/     a model folder that also holds optimizer, schedule, random states and the run's history
      <model files>          the best checkpoint's, when the run is over
      <stage>_summary.json   data, hyperparameters, versions, hardware, time and results; written last

A checkpoint is written under another name and renamed when it is complete, so a run killed at any moment leaves only
whole ones. Resuming repeats the uninterrupted run to the last bit: the order of the rows is a function of the seed and
the step, and the random states of every process are part of the checkpoint.
"""

import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    send_to_device,
    set_seed,
    tqdm,
)
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from .arguments import TrainingArguments, errors_as_messages, override_config
from .batching import StepSampler
from .bert import load_bert
from .checkpoints import STATE_FILE, find_checkpoint, list_checkpoints, single_writer, write_json
from .configuration_tinybert import TinyBertConfig
from .data import iterate_texts, load_data
from .gradients import RowGradients, average_gradients
from .launch import StopSignal, keep_freed_memory, precision_was_chosen, start_processes, use_all_cores
from .modeling_tinybert import TinyBertPreTrainedModel
from .search import fast_dtype
from .tokenization import save_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.safetensors", "*.json", "*.py")  # of a checkpoint, what makes it a model folder
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
# What may differ between a run and its continuation without changing a single weight.
FREE_ARGUMENTS = {"output_dir", "resume_from_checkpoint", "logging_steps", "report_to"}


@dataclass
class Stage:
    """What one training stage brings to the loop.

    Args:
        name: of the summary file.
        collate: rows -> batch of tensors.
        backward: (model, batch, step) -> mean loss of the batch, without graph; adds to the parameters' gradients
            through `accelerator.backward`.
        evaluate: model -> measures on the held-out data.
        best_measure: the measure, higher is better, by which the best checkpoint is chosen.
        data: facts about the data for the summary.
        warm_start_epochs: passes over the data, before the others, that train the token embedding alone, at
        warm_start_learning_rate: its peak then.
    """

    name: str
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    backward: Callable[[nn.Module, dict[str, Any], int], Tensor]
    evaluate: Callable[[PreTrainedModel], dict[str, float]]
    best_measure: str
    data: dict[str, Any]
    warm_start_epochs: float = 0.0
    warm_start_learning_rate: float = 0.0


@dataclass
class TrainingState:
    """What a run remembers besides tensors; saved as JSON in every checkpoint."""

    step: int = 0
    best_step: int = 0
    best_value: float = float("-inf")
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Devices, processes, mixed precision, accumulation and tracker; and the log.

    The precision is `accelerate launch`'s; where it was given none, bf16 if the hardware multiplies it, else fp32.

    Raises: ValueError: if the tracker is unknown to accelerate or not installed, or the launcher shards the model.
    """
    on_cpu = not torch.accelerator.is_available()
    tracker = None if arguments.report_to == "none" else arguments.report_to
    accelerator = Accelerator(
        mixed_precision=choose_precision(),
        cpu=on_cpu,  # accelerate takes several processes without an accelerator for single ones otherwise
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=tracker,
        project_config=ProjectConfiguration(logging_dir=str(Path(arguments.output_dir, "runs"))),
    )
    if on_cpu:
        use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        keep_freed_memory()
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"This training keeps a whole model on every device, and accelerate was configured for "
            f"{accelerator.distributed_type.value}. Launch it with --multi_gpu, or run `accelerate config` again."
        )
    if tracker and not accelerator.log_with:
        raise ValueError(
            f"The tracker {tracker} is not installed; pip install {tracker}, or pass --report_to none."
        )
    logging.basicConfig(
        level=logging.INFO if accelerator.is_main_process else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for chatty in ("accelerate", "httpx"):  # a line for each file of a checkpoint, and for each request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logger.info("Training on %s with mixed precision %s.", accelerator.device, accelerator.mixed_precision)
    transformers_logging.disable_progress_bar()  # it would cut the training bar in two at every checkpoint
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    return accelerator


def choose_precision() -> str:
    """What the user asked for; otherwise bf16 where the hardware multiplies it, and fp32 elsewhere."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked and (asked != "no" or precision_was_chosen()):
        return asked
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    return "bf16" if fast_dtype(device) == torch.bfloat16 else "no"


def run_stage(
    arguments: TrainingArguments, build: Callable[[Any, Accelerator, Path | None], "Trainer"]
) -> dict[str, Any]:
    """Set up, resume where asked, and train; what both scripts call. Exits with a message on bad input.

    Args:
        arguments: of the stage.
        build: (arguments, accelerator, checkpoint to resume from) -> the stage's trainer.
    """
    with ExitStack() as stack:
        with errors_as_messages():
            start_processes()
            Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
            accelerator = build_accelerator(arguments)
            stack.enter_context(single_writer(accelerator, Path(arguments.output_dir)))
            checkpoint = find_checkpoint(arguments)
            trainer = build(arguments, accelerator, checkpoint)
            if checkpoint:
                trainer.resume(checkpoint)
        return trainer.train()


@dataclass
class Start:
    """Where training begins: a configuration, the tokenizer that belongs to it, and weights, if they are not random."""

    config: TinyBertConfig
    tokenizer: PreTrainedTokenizerBase
    source: str | None = None
    weights: dict[str, Tensor] | None = None

    @property
    def random(self) -> bool:
        return self.source is None and self.weights is None

    def load(self, model_class: type[TinyBertPreTrainedModel], **options: Any) -> TinyBertPreTrainedModel:
        """The model; what `model_class` has and the weights have not is random. Options as of `from_pretrained`."""
        if self.random:
            return model_class(self.config)
        return model_class.from_pretrained(
            self.source, config=self.config, state_dict=self.weights, **options
        )


def load_encoder(source: str, overrides: str | None = None) -> Start:
    """The encoder of a folder or Hub id: a TinyBERT, or a BERT that becomes one, as `overrides` ask (`bert.load_bert`).

    Raises: ValueError: if it is neither, if `overrides` contradict a TinyBERT's configuration, or a BERT's weights fix it.
    """
    config = AutoConfig.from_pretrained(source)
    if config.model_type == "bert":
        config, weights, tokenizer = load_bert(source, config, overrides)
        return Start(config, tokenizer, weights=weights)
    if config.model_type != TinyBertConfig.model_type:
        raise ValueError(
            f"--model {source} is a {config.model_type} model; this script trains tinybert models, and BERT models "
            "(as sentence-transformers/all-MiniLM-L6-v2), which become such."
        )
    own, asked = config.to_dict(), override_config(config, overrides).to_dict()
    if other := sorted(f"{name}={own[name]}" for name, value in asked.items() if value != own[name]):
        raise ValueError(
            f"--config_overrides {overrides}: --model {source} is a tinybert model, which brings its own configuration "
            f"({', '.join(other)}). Leave one of them out."
        )
    return Start(config, AutoTokenizer.from_pretrained(source), source)


def load_start(
    arguments: TrainingArguments, accelerator: Accelerator, checkpoint: Path | None, dataset: Dataset
) -> Start:
    """The checkpoint, or `--model`, or a new model with random weights.

    A new model's tokenizer learns from `tokenizer_data`, by default from the training texts in `dataset`.

    Raises: ValueError: if `--config_overrides` names what the configuration has not; and what `load_encoder` raises.
    """
    if checkpoint:
        return load_encoder(str(checkpoint))
    if arguments.model:
        return load_encoder(arguments.model, arguments.config_overrides)
    config = override_config(TinyBertConfig(), arguments.config_overrides)
    if accelerator.is_main_process:
        sources = (
            [load_data(data) for data in arguments.tokenizer_data] if arguments.tokenizer_data else [dataset]
        )
        logger.info("Training the tokenizer.")
        texts = (text for source in sources for text in iterate_texts(source))
        tokenizer = train_tokenizer(texts, config.vocab_size, config.max_position_embeddings)
        save_tokenizer(tokenizer, arguments.output_dir)
    accelerator.wait_for_everyone()
    tokenizer = AutoTokenizer.from_pretrained(arguments.output_dir, config=config)
    config.vocab_size = len(tokenizer)
    return Start(config, tokenizer)


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


def build_schedule(
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    warmup_ratio: float,
    warm_start_steps: int,
    warm_start_learning_rate: float,
) -> LambdaLR:
    """Two linear schedules, one after the other.

    During the warm start the token embedding (`build_optimizer`'s first group) falls from its own peak to 0, and nothing
    else is trained. In the steps after it, every group rises from 0 to its peak and falls to 0.
    """
    num_steps = max_steps - warm_start_steps
    warmup_steps = round(warmup_ratio * num_steps)

    def factor(step: int) -> float:
        step -= warm_start_steps
        return step / warmup_steps if step < warmup_steps else (num_steps - step) / (num_steps - warmup_steps)

    embedding, *others = optimizer.param_groups
    peak = warm_start_learning_rate / embedding["lr"]

    def embedding_factor(step: int) -> float:
        return peak * (1 - step / warm_start_steps) if step < warm_start_steps else factor(step)

    def other_factor(step: int) -> float:
        return 0.0 if step < warm_start_steps else factor(step)

    return LambdaLR(optimizer, [embedding_factor, *[other_factor] * len(others)])


class Trainer:
    """One run of one stage; `train` is its loop."""

    def __init__(
        self,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        stage: Stage,
    ) -> None:
        self.arguments = arguments
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.stage = stage
        self.output_dir = Path(arguments.output_dir)
        self.sampler = StepSampler(
            len(dataset),
            arguments.per_device_train_batch_size,
            arguments.gradient_accumulation_steps,
            arguments.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.warm_start_steps = round(stage.warm_start_epochs * self.sampler.steps_per_epoch)
        if arguments.max_steps > 0:
            self.sampler.max_steps = arguments.max_steps
        else:
            num_steps = max(1, round(arguments.num_train_epochs * self.sampler.steps_per_epoch))
            self.sampler.max_steps = self.warm_start_steps + num_steps
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=stage.collate,
            generator=torch.Generator(),  # of its own: the default one belongs to the dropout masks
        )
        # Not for evaluation only: this leaves out DistributedDataParallel, whose part `average_gradients` has.
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(model, arguments))
        self.rows = RowGradients(self.unwrapped_model.get_input_embeddings())
        # Not prepared: accelerate's wrapper would step it once for every process.
        self.scheduler = build_schedule(
            self.optimizer,
            self.max_steps,
            arguments.warmup_ratio,
            self.warm_start_steps,
            stage.warm_start_learning_rate,
        )
        accelerator.register_for_checkpointing(self.scheduler)
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)
        self.state = TrainingState(run=self._identity(len(dataset)))
        set_seed(arguments.seed, device_specific=True)  # every process draws its own dropout masks

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.sampler.max_steps

    @property
    def unwrapped_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model)

    def train(self) -> dict[str, Any]:
        """Run, or continue after `resume`, to the last step; returns the run's summary."""
        stop = StopSignal()
        self.accelerator.init_trackers(
            self.stage.name, {name: str(value) for name, value in asdict(self.arguments).items()}
        )
        started = time.perf_counter() - self.state.seconds
        if not self.state.history:
            self._evaluate()
        with (
            logging_redirect_tqdm(),
            tqdm(
                total=self.max_steps,
                initial=self.state.step,
                desc=f"Training ({self.stage.name})",
                unit="step",
                dynamic_ncols=True,
            ) as bar,
        ):
            self._loop(bar, stop, started)
        return self._finish()

    def _loop(self, bar: tqdm, stop: StopSignal, started: float) -> None:
        """Every step from the current one to the last."""
        losses: list[Tensor] = []
        window = time.perf_counter()
        for batch in self.loader:
            losses.append(self._micro_step(batch))
            if not self.accelerator.sync_gradients:
                continue
            self.state.step += 1
            self.state.seconds = time.perf_counter() - started
            bar.update()
            if self.state.step % self.arguments.logging_steps == 0:
                self._report(bar, losses, time.perf_counter() - window)
                losses, window = [], time.perf_counter()
            last = self.state.step == self.max_steps
            if last or self.state.step % self.arguments.save_steps == 0:
                paused = time.perf_counter()
                self._evaluate()
                self.state.seconds = time.perf_counter() - started
                self._save_checkpoint()
                window += time.perf_counter() - paused  # the texts per second are those of training
            if stop.received(self.accelerator) and not last:
                self._leave(stop)

    def _micro_step(self, batch: dict[str, Any]) -> Tensor:
        """Forward, backward and, after the last batch of a step, the update; returns the loss without gradients."""
        self.model.train()
        with self.accelerator.accumulate(self.model):
            batch = send_to_device(batch, self.accelerator.device)
            loss = self.stage.backward(self.model, batch, self.state.step)
            if self.accelerator.sync_gradients:
                self.rows.finish()
                average_gradients(self.accelerator, self.model)
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.rows.clear()
                if not self.accelerator.optimizer_step_was_skipped:
                    self.scheduler.step()
        return loss

    def _report(self, bar: tqdm, losses: list[Tensor], seconds: float) -> None:
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        if loss != loss:
            raise FloatingPointError(
                f"The loss is not a number at step {self.state.step}. Lower --learning_rate; the last checkpoint in "
                f"{self.output_dir} is intact."
            )
        values = {
            "loss": loss,
            "learning_rate": self.scheduler.get_last_lr()[-1],
            "texts_per_second": len(losses) * self._texts_per_batch() / seconds,
        }
        bar.set_postfix_str(
            f"loss {loss:.3f}, lr {values['learning_rate']:.1e}, {values['texts_per_second']:.0f} texts/s"
        )
        self._record(values)

    def _texts_per_batch(self) -> int:
        texts_per_row = self.stage.data["texts_per_row"]
        return self.arguments.per_device_train_batch_size * self.accelerator.num_processes * texts_per_row

    def _record(self, values: dict[str, float]) -> None:
        self.state.history.append({"step": self.state.step, **values})
        self.accelerator.log(values, step=self.state.step)

    def _evaluate(self) -> None:
        """Measure on the held-out data, and remember whether this is the best step so far."""
        measures = self.stage.evaluate(self.unwrapped_model)
        self._record({f"eval_{name}": value for name, value in measures.items()})
        logger.info(
            "step %d: %s",
            self.state.step,
            ", ".join(f"{name} {value:.4f}" for name, value in measures.items()),
        )
        if self.state.step and measures[self.stage.best_measure] > self.state.best_value:
            self.state.best_step, self.state.best_value = self.state.step, measures[self.stage.best_measure]

    def _save_checkpoint(self) -> None:
        """Write `checkpoint-<step>` whole or not at all, then drop all but it and the best."""
        folder = self.output_dir / f"checkpoint-{self.state.step}"
        if folder.exists():  # the run was resumed from an earlier one; this step's bytes are the same
            return
        unfinished = self.output_dir / f"unfinished-{folder.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        if self.accelerator.is_main_process:
            save_tokenizer(self.tokenizer, unfinished)
            write_json(unfinished / STATE_FILE, asdict(self.state))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            unfinished.rename(folder)
            self._drop_checkpoints()
        self.accelerator.wait_for_everyone()

    def _drop_checkpoints(self) -> None:
        kept = {f"checkpoint-{self.state.step}", f"checkpoint-{self.state.best_step}"}
        for path in list_checkpoints(self.output_dir):
            if path.name not in kept:
                shutil.rmtree(path.rename(path.with_name(f"unfinished-{path.name}")))

    def _save_model(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        """accelerate's hook: a checkpoint's weights are those of a model folder, with its code."""
        weights.clear()
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(models[0]).save_pretrained(folder)

    def _load_model(self, models: list[nn.Module], folder: str) -> None:
        """accelerate's hook; the weights were loaded when the model was built from the checkpoint."""
        models.clear()

    def resume(self, checkpoint: Path) -> None:
        """Continue where the checkpoint stopped, its model being loaded already.

        Raises: ValueError: if an argument, the number of rows or of processes is not that of the checkpoint's run.
        """
        saved = TrainingState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        differences = [
            f"{name} was {saved.run.get(name)}, now {value}"
            for name, value in self.state.run.items()
            if saved.run.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"{checkpoint} belongs to another run: {'; '.join(differences)}. Resume with the same settings, or "
                f"start a new run from its weights: --model {checkpoint} and another --output_dir."
            )
        self.accelerator.load_state(str(checkpoint))
        self.state = saved
        self.sampler.start_step = saved.step
        logger.info("Resumed %s at step %d of %d.", checkpoint, saved.step, self.max_steps)

    def _leave(self, stop: StopSignal) -> None:
        """Save and exit with the signal's conventional status."""
        self._save_checkpoint()
        logger.warning(
            "Stopped by a signal; step %d of %d is saved in %s. Continue with --resume_from_checkpoint auto.",
            self.state.step,
            self.max_steps,
            self.output_dir,
        )
        self.accelerator.end_training()
        sys.exit(128 + (stop.number or signal.SIGTERM))

    def _finish(self) -> dict[str, Any]:
        """Put the best checkpoint's model into `output_dir`, then write the summary."""
        summary = self._summary()
        if self.accelerator.is_main_process:
            best = self.output_dir / f"checkpoint-{self.state.best_step}"
            for pattern in MODEL_FILES:
                for path in best.glob(pattern):
                    if path.name != STATE_FILE:
                        shutil.copyfile(path, self.output_dir / path.name)
            for path in Path(self.arguments.model or "").glob("*_summary.json"):  # how the start was trained
                shutil.copyfile(path, self.output_dir / path.name)
            write_json(self.output_dir / f"{self.stage.name}_summary.json", summary)
            for path in self.output_dir.glob("unfinished-*"):
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()
        logger.info("The model of step %d is in %s.", self.state.best_step, self.output_dir)
        self.accelerator.end_training()
        return summary

    def _identity(self, num_rows: int) -> dict[str, Any]:
        """What must be the same for a continuation to be the same run."""
        arguments = {k: v for k, v in asdict(self.arguments).items() if k not in FREE_ARGUMENTS}
        return arguments | {
            "num_rows": num_rows,
            "num_processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
        }

    def _summary(self) -> dict[str, Any]:
        evaluations = [
            entry for entry in self.state.history if any(name.startswith("eval_") for name in entry)
        ]
        best = next(entry for entry in reversed(evaluations) if entry["step"] == self.state.best_step)
        return {
            "stage": self.stage.name,
            "data": self.stage.data,
            "arguments": asdict(self.arguments),
            "parameters": sum(parameter.numel() for parameter in self.unwrapped_model.parameters()),
            "steps": self.max_steps,
            "epochs": round(self.max_steps / self.sampler.steps_per_epoch, 2),
            "rows_per_step": self.sampler.rows_per_step,
            "seconds": round(self.state.seconds, 1),
            "best_step": self.state.best_step,
            "results": {name.removeprefix("eval_"): value for name, value in best.items() if name != "step"},
            "history": self.state.history,
            "hardware": describe_hardware(self.accelerator),
            "versions": describe_versions(),
        }


def describe_hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Device, processes, threads and precision of a run."""
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "num_processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }


def describe_versions() -> dict[str, str]:
    """Versions of what decides a run's result."""
    packages = ("torch", "transformers", "tokenizers", "datasets", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
