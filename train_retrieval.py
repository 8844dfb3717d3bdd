"""Stage two: train the encoder to match a query to its answer, with in-batch negatives.

    accelerate launch train_retrieval.py --model outputs/sentiment        # the full recipe: Natural Questions
    accelerate launch train_retrieval.py recipes/small_retrieval.yaml     # minutes on a CPU, on the bundled data
    accelerate launch train_retrieval.py --data faq.csv --query_column question --answer_column reply \\
        --output_dir outputs/faq
    accelerate launch train_retrieval.py --documents notes.jsonl --text_column body      # no queries: spans of the texts
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinybert_hf import TinyBertModel
from tinybert_hf.arguments import TrainingArguments, parse_arguments
from tinybert_hf.data import Split, hold_out, load_data, select_columns
from tinybert_hf.documents import draw_pair, pairs_from_documents, read_documents, tokenize_documents
from tinybert_hf.evaluation import evaluate_pairs
from tinybert_hf.gradients import cached_backward
from tinybert_hf.losses import MultipleNegativesRankingLoss, distillation_loss
from tinybert_hf.mine_negatives import mine_by_embeddings
from tinybert_hf.modeling_tinybert import packed_weights
from tinybert_hf.pipeline_tinybert import cut_by_length, pad_batch
from tinybert_hf.search import encode_by_processes
from tinybert_hf.teacher import Teacher, embed_tokens
from tinybert_hf.tokenization import tokenize_columns
from tinybert_hf.training import Stage, Trainer, load_start, run_stage

MINING_DEPTH = 30  # mined negatives are drawn among so many of the best


@dataclass
class RetrievalArguments(TrainingArguments):
    """Stage two; the defaults are the full recipe."""

    data: str = field(
        default="sentence-transformers/natural-questions",
        metadata={"help": "Training data: a Hub id, a file or a folder."},
    )
    query_column: str = field(default="query", metadata={"help": "The column of the query."})
    answer_column: str = field(default="answer", metadata={"help": "The column of the text that answers it."})
    documents: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --data: texts without queries. Queries are cut from their titles, headings or first "
            "sentences, anew in every epoch."
        },
    )
    text_column: str = field(default="text", metadata={"help": "With --documents: the column of the text."})
    title_column: str | None = field(
        default=None, metadata={"help": "With --documents: the column of the title, if there is one."}
    )
    negative_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of texts that look like the answer and are not."}
    )
    mined_negatives: int = field(
        default=0,
        metadata={
            "help": "So many negatives for each query, texts that the model itself ranks highest below the answer; found "
            "after the warm start, and again in every epoch."
        },
    )
    temperature: float = field(
        default=0.05, metadata={"help": "Cosine similarities are divided by it before the softmax."}
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={
            "help": "Train the first so many dimensions of the embeddings to rank on their own too, so that users may cut "
            "them (Kusupati et al. 2022); as 64 128 256."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "A folder or Hub id of an encoder (any SentenceTransformer or AutoModel) to learn from. The warm start of "
            "a new model begins with its embeddings of the tokens. They are kept for later runs."
        },
    )
    distillation_weight: float = field(
        default=0.0,
        metadata={
            "help": "Above 0, the teacher's ranking of each batch is learned too: what that loss counts beside the ranking "
            "loss, which counts 1. The teacher then embeds every training text once. Measure whether it helps: an encoder "
            "without layers became worse (EXPERIMENTS.md)."
        },
    )
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Texts of like length pass through the encoder together, at most so many tokens with padding; "
            "default: 2048 on a CPU, 16384 elsewhere. It changes the speed, not the gradient."
        },
    )
    graph_tokens: int = field(
        default=16_384,
        metadata={
            "help": "The memory for what a batch's backward pass needs, in tokens (0.3 MB each at full size). The tokens for "
            "which it does not suffice pass through the encoder twice, twice as many of them with the second pass's matrix "
            "products kept. It changes memory and speed, not the gradient."
        },
    )
    warm_start_epochs: float = field(
        default=0.0,
        metadata={
            "help": "First, so many passes over the data train the token embedding alone, as an encoder without layers; "
            "new layers then start as the identity. It takes a small part of the time of the other epochs."
        },
    )
    warm_start_learning_rate: float = field(
        default=1e-2, metadata={"help": "Peak for the token embedding during the warm start."}
    )
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={
            "help": "Batches whose gradients are added up before a step. It does not enlarge the set of negatives: "
            "each batch is ranked on its own."
        },
    )
    output_dir: str = field(
        default="outputs/retrieval", metadata={"help": "Folder for the model, checkpoints and the summary."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch_tokens is not None and self.micro_batch_tokens <= 0:
            raise ValueError(f"--micro_batch_tokens must be above 0, got {self.micro_batch_tokens}.")
        if self.documents and (self.negative_columns or self.mined_negatives or self.distillation_weight):
            raise ValueError(
                "--documents makes new queries in every epoch, and --negative_columns, --mined_negatives and "
                "--distillation_weight need fixed ones. Leave them out."
            )
        if self.mined_negatives < 0:
            raise ValueError(f"--mined_negatives must not be negative, got {self.mined_negatives}.")
        if self.warm_start_epochs < 0:
            raise ValueError(f"--warm_start_epochs must not be negative, got {self.warm_start_epochs}.")
        if self.warm_start_learning_rate <= 0:
            raise ValueError(
                f"--warm_start_learning_rate must be above 0, got {self.warm_start_learning_rate}."
            )
        if self.distillation_weight < 0:
            raise ValueError(f"--distillation_weight must not be negative, got {self.distillation_weight}.")
        if self.teacher and not self.distillation_weight and (self.model or not self.warm_start_epochs):
            raise ValueError(
                f"--teacher {self.teacher} has nothing to teach: set --warm_start_epochs for a new model (without --model) to "
                "begin with its embeddings of the tokens, or --distillation_weight to learn its rankings."
            )
        if self.distillation_weight and not self.teacher:
            raise ValueError(f"--distillation_weight {self.distillation_weight} needs a --teacher.")
        if self.graph_tokens < 0:
            raise ValueError(f"--graph_tokens must not be negative, got {self.graph_tokens}.")


def main() -> None:
    arguments = parse_arguments(RetrievalArguments, __doc__)
    run_stage(arguments, build_trainer)


def build_trainer(
    arguments: RetrievalArguments, accelerator: Accelerator, checkpoint: Path | None
) -> Trainer:
    with accelerator.main_process_first():
        data = load_pairs(arguments)
    start = load_start(arguments, accelerator, checkpoint, data.train)
    config, tokenizer = start.config, start.tokenizer
    if arguments.warm_start_epochs and config.pooling != "mean":
        raise ValueError(
            f"--warm_start_epochs {arguments.warm_start_epochs} trains the mean of token embeddings, and this encoder pools "
            f"by {config.pooling!r}. Leave the warm start out, or set pooling: mean in --config_overrides."
        )
    if arguments.warm_start_epochs and config.norm_position != "pre":
        raise ValueError(
            f"--warm_start_epochs {arguments.warm_start_epochs} trains token embeddings for layers that start as the identity, "
            f"and those of --model {arguments.model} do not. Leave the warm start out."
        )
    dims = [config.hidden_size, *(arguments.matryoshka_dims or [])]
    if wrong := [dim for dim in dims if not 1 <= dim <= config.hidden_size]:
        raise ValueError(
            f"--matryoshka_dims must be from 1 to {config.hidden_size}, the width of the encoder, got {wrong[0]}."
        )
    ranking_loss = MultipleNegativesRankingLoss(arguments.temperature, dims)
    set_seed(arguments.seed)
    model = start.load(TinyBertModel)

    with accelerator.main_process_first():
        tokenize = tokenize_documents if arguments.documents else tokenize_columns
        train = tokenize(data.train, tokenizer, config.max_position_embeddings)
        started = time.perf_counter()
        teacher = token_embeddings = None
        if arguments.teacher and arguments.distillation_weight:
            teacher = Teacher(arguments.teacher, data.train)
        if arguments.teacher and arguments.warm_start_epochs and start.random:
            token_embeddings = embed_tokens(arguments.teacher, tokenizer)
        teacher_seconds = time.perf_counter() - started
    micro_batch_tokens = arguments.micro_batch_tokens or (
        2_048 if accelerator.device.type == "cpu" else 16_384
    )

    if token_embeddings is not None:
        start_from_tokens(model, token_embeddings)
    if arguments.warm_start_epochs and not checkpoint:
        weigh_by_rarity(model, train["text" if arguments.documents else "answer"])
    columns = ["query", "answer", *(f"negative_{i}" for i in range(len(arguments.negative_columns or [])))]
    miner = Miner(arguments, data.train, train, tokenizer) if arguments.mined_negatives else None
    if miner:
        accelerator.register_for_checkpointing(miner)
        train = train.add_column("row", range(len(train)))

    def words_alone(step: int) -> bool:
        """Whether no layer takes part: then one pass over the token embedding for the whole batch is the fastest."""
        return step < trainer.warm_start_steps or not config.num_hidden_layers

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        step = trainer.state.step  # batches are made one at a time, each just before its step
        if arguments.documents:
            pairs = [draw_pair(row, arguments.seed, step // trainer.sampler.steps_per_epoch) for row in rows]
            texts = [pair.query for pair in pairs] + [pair.answer for pair in pairs]
            ids = torch.tensor([row["text_id"] for row in rows] * 2)
        else:
            texts = [row[name] for name in columns for row in rows]
            ids = torch.tensor([row[f"{name}_id"] for name in columns for row in rows])
        if miner and step >= trainer.warm_start_steps:
            epoch = (step - trainer.warm_start_steps) // trainer.sampler.steps_per_epoch
            mined, mined_ids = miner.negatives(trainer.unwrapped_model, [row["row"] for row in rows], epoch)
            texts += mined
            ids = torch.cat((ids, mined_ids))
        groups = (
            [list(range(len(texts)))]
            if words_alone(step)
            else cut_by_length([len(text) for text in texts], micro_batch_tokens)
        )
        return {
            "micro_batches": [pad_batch([texts[i] for i in group], config.pad_token_id) for group in groups],
            "order": torch.tensor([i for group in groups for i in group]).argsort(),
            "query_ids": ids[: len(rows)],
            "answer_ids": ids[len(rows) :],
        }

    def backward(model: nn.Module, batch: dict[str, Any], step: int) -> Tensor:
        encoder = accelerator.unwrap_model(model)
        warm_start = step < trainer.warm_start_steps
        encoder.layers.requires_grad_(not warm_start)

        def embed(texts: dict[str, Tensor]) -> Tensor:
            if warm_start:
                return encoder.embed_words(**texts)
            return model(**texts, pooled_only=True).pooler_output

        def compute_loss(embeddings: Tensor) -> Tensor:
            embeddings = embeddings[batch["order"]]  # queries, answers, negatives
            queries, answers = embeddings.tensor_split([len(batch["query_ids"])])
            loss = ranking_loss(queries, answers, batch["query_ids"], batch["answer_ids"])
            if teacher:
                targets = teacher.look_up(batch["query_ids"]), teacher.look_up(batch["answer_ids"])
                distilled = distillation_loss(queries, answers, *targets, arguments.temperature, dims)
                loss = loss + arguments.distillation_weight * distilled
            return loss

        # Without layers there are no activations to save.
        graph_tokens = sys.maxsize if words_alone(step) else arguments.graph_tokens
        micro_batches = batch["micro_batches"]
        num_tokens = sum(texts["input_ids"].numel() for texts in micro_batches)
        with packed_weights(num_tokens, accelerator.device):
            return cached_backward(accelerator, embed, micro_batches, compute_loss, graph_tokens)

    def evaluate(model: PreTrainedModel) -> dict[str, float]:
        embed = partial(encode_by_processes, model, tokenizer)
        pairs = data.evaluation
        return evaluate_pairs(pairs["query"][:], pairs["answer"][:], embed, arguments.temperature)

    facts = {
        "data": arguments.documents or arguments.data,
        "train_rows": len(train),
        "eval_rows": len(data.evaluation),
        "texts_per_row": len(columns) + arguments.mined_negatives,
        "teacher_seconds": round(teacher_seconds, 1),
    }
    stage = Stage(
        "retrieval",
        collate,
        backward,
        evaluate,
        best_measure="nDCG@10",
        data=facts,
        warm_start_epochs=arguments.warm_start_epochs,
        warm_start_learning_rate=arguments.warm_start_learning_rate,
    )
    trainer = Trainer(arguments, accelerator, model, tokenizer, train, stage)
    return trainer


@torch.no_grad()
def start_from_tokens(model: TinyBertModel, token_embeddings: Tensor) -> None:
    """Put a teacher's embeddings of the tokens into the first dimensions of the model's; the others stay random.

    Both have the same variance, so that each dimension has the same say.

    Args:
        model: of V tokens and H dimensions.
        token_embeddings: (V, any width), the most important dimensions first (`teacher.embed_tokens`); more than H are cut.
    """
    embeddings = model.get_input_embeddings().weight
    learned = token_embeddings[:, : embeddings.shape[1]]
    embeddings[:, : learned.shape[1]] = (learned * (embeddings.std() / learned.std())).to(embeddings)


@torch.no_grad()
def weigh_by_rarity(model: TinyBertModel, texts: Iterable[list[int]]) -> None:
    """Scale the token embeddings by inverse document frequency (as BM25 has it), so that a warm start begins as a search
    for rare words, and rare words that training does not move keep their say.
    """
    embeddings = model.get_input_embeddings().weight
    counts = torch.zeros(len(embeddings))
    num_texts = 0
    for tokens in texts:
        counts[list(set(tokens))] += 1
        num_texts += 1
    rarity = torch.log1p((num_texts - counts + 0.5) / (counts + 0.5))
    embeddings.mul_((rarity / rarity[counts > 0].mean())[:, None].to(embeddings))


class Miner:
    """Negatives that the model in training takes for answers; part of every checkpoint."""

    def __init__(
        self,
        arguments: RetrievalArguments,
        pairs: Dataset,
        tokens: Dataset,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.arguments, self.pairs, self.tokenizer = arguments, pairs, tokenizer
        self.answers = tokens.select_columns(["answer", "answer_id"])
        self.query_ids, self.answer_ids = (
            torch.tensor(tokens[name][:]) for name in ("query_id", "answer_id")
        )
        self.epoch = -1
        self.rows = torch.empty(0, arguments.mined_negatives, dtype=torch.long)

    def negatives(
        self, model: PreTrainedModel, rows: list[int], epoch: int
    ) -> tuple[list[list[int]], Tensor]:
        """Tokens and text ids of the negatives of these rows: first one for each row, then the second ones."""
        if epoch != self.epoch:
            self.mine(model, epoch)
        chosen = self.answers[self.rows[rows].T.flatten().tolist()]
        return chosen["answer"], torch.tensor(chosen["answer_id"])

    def mine(self, model: PreTrainedModel, epoch: int) -> None:
        """Rank all answers for every query with the model as it is now."""
        queries, answers = (
            encode_by_processes(model, self.tokenizer, self.pairs[name][:], show_progress_bar=True)
            for name in ("query", "answer")
        )
        mined = mine_by_embeddings(
            queries,
            answers,
            self.query_ids,
            self.answer_ids,
            self.arguments.mined_negatives,
            depth=max(MINING_DEPTH, self.arguments.mined_negatives),
            seed=self.arguments.seed + epoch,
        )
        self.epoch, self.rows = epoch, mined.columns

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.rows = state["epoch"], state["rows"]


def load_pairs(arguments: RetrievalArguments) -> Split:
    """Rows with the columns `query`, `answer`, and `negative_0`, `negative_1`, ... where there are any.

    Of documents, the rows to train on have `head` and `body` (`documents.read_documents`).
    """
    columns = {"query": arguments.query_column, "answer": arguments.answer_column}
    flags = {"query": "query_column", "answer": "answer_column"}
    for i, column in enumerate(arguments.negative_columns or []):
        columns[f"negative_{i}"], flags[f"negative_{i}"] = column, "negative_columns"

    def read(data: str, split: str) -> Dataset:
        rows = load_data(data, arguments.data_config, split, arguments.data_revision)
        return select_columns(rows, columns, f"{data} ({split})", flags)

    if arguments.documents:
        return load_documents(arguments, read)
    train = read(arguments.data, arguments.data_split)
    if source := arguments.evaluation_source:
        return Split(train, read(*source))
    return hold_out(train, arguments.eval_size, arguments.seed, by=["query", "answer"])


def load_documents(arguments: RetrievalArguments, read: Callable[[str, str], Dataset]) -> Split:
    """Documents to train on; to measure on, the pairs of `--eval_data` or heads and bodies of documents held out."""
    assert arguments.documents
    columns, flags = {"text": arguments.text_column}, {"text": "text_column"}
    if arguments.title_column:
        columns["title"], flags["title"] = arguments.title_column, "title_column"
    rows = load_data(
        arguments.documents, arguments.data_config, arguments.data_split, arguments.data_revision
    )
    documents = read_documents(rows, columns, arguments.documents, flags)
    if arguments.eval_data and (source := arguments.evaluation_source):
        return Split(documents, read(*source))
    train, held_out = hold_out(documents, arguments.eval_size, arguments.seed, by=["body"])
    return Split(train, pairs_from_documents(held_out))


if __name__ == "__main__":
    main()
