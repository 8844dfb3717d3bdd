"""What the benchmarks share: runs in processes of their own, in alternation; the model; the machine; the tables."""

import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import torch
from transformers import BertConfig, BertModel, HfArgumentParser

from tinybert_hf import TinyBertConfig, TinyBertModel
from tinybert_hf.data import iterate_texts, load_data
from tinybert_hf.tokenization import save_tokenizer, train_tokenizer

DATA = "data/debian/train.jsonl.gz"
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "accelerate", "onnxruntime")
EXTENSIONS = ("neon", "sve", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "bf16")
SIZES: dict[str, dict[str, Any]] = {
    "full": {},  # TinyBertConfig's defaults: 8 layers x 768, 30,000 tokens, dropout 0.1
    "small": {
        "vocab_size": 16_000,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
    "tiny": {  # for the tests
        "vocab_size": 1000,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
}
SHARED = (  # what TinyBertConfig and BertConfig both have
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)

Result = TypeVar("Result")
Key = TypeVar("Key")


@dataclass
class BenchmarkArguments:
    """What every benchmark asks; each adds its own."""

    size: Literal["full", "small", "tiny"] = field(
        default="full", metadata={"help": "8 layers x 768, 2 x 256, or 2 x 32 to try the command."}
    )
    threads: int = field(default=0, metadata={"help": "Of every run; 0: one for each core it may use."})
    repeats: int = field(default=3, metadata={"help": "Runs of each side, in alternation; the median counts."})
    output_file: str | None = field(default=None, metadata={"help": "Where to keep all numbers, as JSON."})

    def __post_init__(self) -> None:
        if self.threads < 0 or self.repeats < 1:
            raise ValueError(
                f"--threads must be 0 or more and --repeats 1 or more, got {self.threads} and {self.repeats}."
            )
        self.threads = self.threads or len(os.sched_getaffinity(0))


Arguments = TypeVar("Arguments", bound=BenchmarkArguments)


def parse_arguments(cls: type[Arguments], description: str | None) -> Arguments:
    (arguments,) = HfArgumentParser(cls, description=description).parse_args_into_dataclasses()
    return arguments


def make_model(size: str, folder: Path, overrides: dict[str, Any] | None = None) -> Path:
    """A model folder with random weights, the same for the same arguments, and a tokenizer of the bundled texts.

    In its folder `bert` are the same weights as transformers' `BertModel`, from which it was converted.
    """
    from tinybert_hf.convert_bert import load_encoder  # here, as the runs that are measured need none of it

    config = TinyBertConfig(**(SIZES[size] | (overrides or {})))
    tokenizer = train_tokenizer(iterate_texts(load_data(DATA)), config.vocab_size, config.max_position_embeddings)
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**{name: getattr(config, name) for name in SHARED}))
    bert.save_pretrained(folder / "bert")
    save_tokenizer(tokenizer, folder / "bert")
    load_encoder(str(folder / "bert")).load(TinyBertModel).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def load_sentence_transformer(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """A folder as sentence-transformers loads any encoder of the Hub, with the pooling that ours names, or the mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    trust: dict[str, Any] = {"trust_remote_code": True}
    encoder = Transformer(folder, model_kwargs=trust | {"dtype": dtype}, config_kwargs=trust, processor_kwargs=trust)
    pooling = getattr(encoder.config, "pooling", "mean")
    return SentenceTransformer(
        modules=[encoder, Pooling(encoder.config.hidden_size, pooling_mode=pooling)],
        device=None if torch.cuda.is_available() else "cpu",
    )


# ---- Runs ----


def run_alone(function: Callable[..., Result], *arguments: Any, threads: int) -> Result:
    """`function(*arguments)` in a fresh process, so that its peak memory is its own.

    The process may take what is free now and no more: on a shared machine, the kernel could end somebody else's.

    Raises:
        MemoryError: if that was not enough.
        RuntimeError: if it fails for another reason; its traceback is on standard error.
    """
    os.environ |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}  # read at its imports
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    limit = int(psutil.virtual_memory().available * 0.95)
    process = context.Process(target=_child, args=(sender, limit, threads, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{function.__name__} ended with status {process.exitcode}, see the messages above."
        ) from None
    process.join()
    if isinstance(result, MemoryError):
        raise result
    return result


def _child(
    sender: Connection, limit: int, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.dup2(2, 1)  # standard output is the parent's table
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        sender.send(function(*arguments))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("can't allocate|out of memory", str(error)):
            raise
        sender.send(MemoryError(str(error)))


def peak_mib() -> float:
    """The most memory that this process has held so far: a GPU's where there is one, else what was resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    if sys.platform == "linux":  # there, getrusage's number starts at what the parent held
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def alternate(sides: Mapping[Key, Callable[[], Result]], repeats: int) -> dict[Key, list[Result]]:
    """A B C A B C ...: a machine that slows down slows all sides down. A side that runs out of memory has no results."""
    results: dict[Key, list[Result]] = {side: [] for side in sides}
    remaining = dict(sides)
    for repeat in range(repeats):
        for side, run in list(remaining.items()):
            try:
                results[side].append(run())
            except MemoryError as error:
                print(f"{side} ran out of memory: {error}", file=sys.stderr)
                results[side].clear()
                del remaining[side]
            print(f"run {repeat + 1} of {repeats}: {side}", file=sys.stderr)
    return results


# ---- Tables ----


def bf16_in_hardware() -> bool:
    """Whether the processor, or the GPU that the runs will use, multiplies bf16 matrices itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_info()[1])


def _cpu_info() -> tuple[str, set[str]]:
    """The processor's name and flags, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return facts.get("model name") or platform.processor() or platform.machine(), flags


def describe_machine(threads: int) -> dict[str, str]:
    """Processor, cores, vector extensions, bf16, memory, and versions."""
    name, flags = _cpu_info()
    extensions = [extension for extension in EXTENSIONS if extension in flags]
    capability = torch.backends.cpu.get_cpu_capability()
    device = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return device | {
        "processor": name,
        "cores": f"{os.cpu_count()}, {threads} threads used",
        "vector extensions": f"{', '.join(extensions) or 'unknown'} (torch uses {capability})",
        "bf16 in hardware": "yes" if bf16_in_hardware() else "no",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in PACKAGES)]
        ),
    }


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (lowest to highest)`."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def report(arguments: BenchmarkArguments, tables: Sequence[str], numbers: Any) -> None:
    """Print command, machine and tables as Markdown; keep everything in `--output_file`."""
    module = Path(sys.argv[0]).stem
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
    machine = describe_machine(arguments.threads)
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    print(f"    {command}", facts, *tables, sep="\n\n")
    if arguments.output_file:
        path = Path(arguments.output_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "command": command,
            "machine": machine,
            "arguments": asdict(arguments),
            "numbers": numbers,
            "tables": tables,
        }
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
