"""Stage two: match a query to its answer, with in-batch negatives. docs/architecture.md follows a batch through it."""

import logging
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..beir import RetrievalData, pairs_as_retrieval
from ..data import MOST_HELD_OUT, describe_data
from ..documents import draw_pair, tokenize_documents
from ..encoding import encode_by_processes, load_search_pipeline
from ..errors import InputError
from ..evaluation import LOSS_BATCH, RERANK_DEPTH, choose_rerank, evaluate_pairs, load_text_encoder
from ..kernels import CpuKernels
from ..losses import MultipleNegativesRankingLoss
from ..measures import ranking_measures
from ..mine_negatives import mine_by_embeddings
from ..modeling_tinybert import TinyBertModel
from ..pipeline_tinybert import length_batches, pad_batch, with_prompt
from ..ranking import Bm25
from ..tokenization import prompt_tokens, report_tokens, tokenize_columns
from ..words import embed_words, is_words_alone, start_from_teacher, weigh_by_rarity
from .arguments import RetrievalArguments
from .gradients import MicroBatch, cached_backward
from .pairs import load_pairs
from .sampler import build_sampler
from .stage import Stage, load_start

logger = logging.getLogger(__name__)

MINING_DEPTH = 30  # mined negatives are drawn among the best of this number
MICRO_BATCH_TOKENS, MICRO_BATCH_TOKENS_ON_CPU = 16_384, 2_048  # padding included


class RetrievalBatch(NamedTuple):
    """Texts of B rows: B queries, B answers, then the negatives."""

    micro_batches: list[MicroBatch]  # each with `input_ids` and `attention_mask`, (texts, T)
    order: Tensor  # (texts,): the place of each text in the micro-batches
    query_ids: Tensor  # (B,) text ids (`data.text_id`)
    answer_ids: Tensor  # (B x (1 + negatives),), the answers first


class RetrievalStage(Stage):
    """Pairs, and negatives where there are any. It reads them, and loads the model that training starts from."""

    name, unit, best_measure = "retrieval", "pairs", "nDCG@10"
    told_columns: tuple[str, ...] = ("query", "answer")  # of `rows`: whose tokens are told of, the answers last

    def __init__(self, arguments: RetrievalArguments, accelerator: Accelerator, checkpoint: Path | None) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        with accelerator.main_process_first():
            self.data = load_pairs(arguments)
        start = load_start(arguments, accelerator, checkpoint, self.data.train)
        asked = {"query": arguments.query_prompt, "document": arguments.document_prompt}
        start.config.prompts |= {kind: prompt for kind, prompt in asked.items() if prompt is not None}
        self.tokenizer, self.max_length = start.tokenizer, start.config.max_position_embeddings
        self.prompts = prompt_tokens(self.tokenizer, start.config.prompts, self.max_length)
        dims = [width := start.config.hidden_size, *(arguments.matryoshka_dims or [])]
        if wrong := [dim for dim in dims if not 1 <= dim <= width]:
            raise InputError(f"--matryoshka_dims must be from 1 to {width}, the width of the encoder, got {wrong[0]}.")
        self.loss = MultipleNegativesRankingLoss(arguments.temperature, dims)
        set_seed(arguments.seed)
        self.model = start.load(TinyBertModel)
        self.config = self.model.config
        with accelerator.main_process_first():
            self.rows = self.tokenize()
            report_tokens(self.rows, self.told_columns, self.tokenizer, self.max_length)
            if arguments.teacher and start.source is None:
                teacher = load_text_encoder(arguments.teacher)
                start_from_teacher(self.model, self.tokenizer, teacher.encode_documents)
        if start.source is None and is_words_alone(self.config):
            weigh_by_rarity(self.model, self.rows[self.told_columns[-1]])
        self.sampler = build_sampler(arguments, accelerator, len(self.rows))
        self.micro_batch_tokens = MICRO_BATCH_TOKENS_ON_CPU if accelerator.device.type == "cpu" else MICRO_BATCH_TOKENS
        self.columns = ["query", "answer", *(f"negative_{i}" for i in range(len(arguments.negative_columns or [])))]
        self.texts_per_row = len(self.columns) + arguments.mined_negatives
        if (size := len(self.data.evaluation)) < LOSS_BATCH:
            logger.info("The held-out loss ranks %d pairs against each other: %.2f is chance.", size, math.log(size))
        self.mined_epoch = -1  # in which `mined_rows` were the answers that each query takes wrongly
        self.mined_rows = torch.empty(0, arguments.mined_negatives, dtype=torch.long)

    def tokenize(self) -> Dataset:
        return tokenize_columns(self.data.train, self.tokenizer, self.max_length, self.config.prompts)

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """At the first step of each epoch, mine negatives with the model as it is now."""
        epoch = step // self.sampler.steps_per_epoch
        if self.arguments.mined_negatives and epoch != self.mined_epoch:
            self.mined_epoch, self.mined_rows = epoch, self.mine(model, epoch)

    def mine(self, model: PreTrainedModel, epoch: int) -> Tensor:
        """Rows of wrong answers that the model ranks high, (rows, mined_negatives)."""
        encode = partial(encode_by_processes, model, self.tokenizer, show_progress_bar=True)
        queries, answers = map(encode, self.prompted(self.data.train))
        query_ids, answer_ids = (torch.tensor(self.rows[name][:]) for name in ("query_id", "answer_id"))
        number, seed = self.arguments.mined_negatives, self.arguments.seed + epoch
        depth = max(MINING_DEPTH, number)
        return mine_by_embeddings(queries, answers, query_ids, answer_ids, number, depth=depth, seed=seed)

    def batch(self, rows: list[int], step: int) -> RetrievalBatch:
        """Rows of the training data -> B queries, answers and negatives, in micro-batches of texts of like length."""
        texts, ids = self.texts(rows, step)
        if self.config.num_hidden_layers:
            groups = length_batches([len(text) for text in texts], self.micro_batch_tokens)
        else:  # one pass over the token embedding for the whole batch is the fastest
            groups = [list(range(len(texts)))]
        return RetrievalBatch(
            micro_batches=[pad_batch([texts[i] for i in group], self.config.pad_token_id) for group in groups],
            order=torch.tensor([i for group in groups for i in group]).argsort(),
            query_ids=ids[: len(rows)],
            answer_ids=ids[len(rows) :],
        )

    def texts(self, rows: list[int], step: int) -> tuple[list[list[int]], Tensor]:
        """Token ids and text ids: the queries of all rows, their answers, then the negatives."""
        read = self.rows[rows]
        texts = [ids for name in self.columns for ids in read[name]]
        ids = torch.tensor([number for name in self.columns for number in read[f"{name}_id"]])
        if self.arguments.mined_negatives:
            mined = self.rows[self.mined_rows[rows].T.flatten().tolist()]
            texts += mined["answer"]
            ids = torch.cat((ids, torch.tensor(mined["answer_id"])))
        return texts, ids

    def backward(self, model: nn.Module, batch: RetrievalBatch) -> Tensor:
        """Add the gradient of the ranking loss over the whole batch."""
        encoder = self.accelerator.unwrap_model(model)
        num_tokens = sum(texts["input_ids"].numel() for texts in batch.micro_batches)
        kernels = CpuKernels(training=True, num_tokens=num_tokens)

        def embed(texts: MicroBatch) -> Tensor:
            with kernels:
                return embed_words(encoder, **texts) if is_words_alone(encoder.config) else model(**texts).pooler_output

        def compute_loss(embeddings: Tensor) -> Tensor:
            queries, answers = embeddings[batch.order].tensor_split([len(batch.query_ids)])
            return self.loss(queries, answers, batch.query_ids, batch.answer_ids)

        # Without layers there are no activations to save.
        budget = self.arguments.activation_budget_tokens if self.config.num_hidden_layers else sys.maxsize
        return cached_backward(self.accelerator, embed, batch.micro_batches, compute_loss, budget)

    def prompted(self, pairs: Dataset) -> tuple[list[str], list[str]]:
        queries, answers = pairs["query"][:], pairs["answer"][:]
        return with_prompt(self.config, "query", queries), with_prompt(self.config, "document", answers)

    def evaluate(self, model: PreTrainedModel) -> dict[str, float]:
        queries, answers = self.prompted(self.data.evaluation)
        embed = partial(encode_by_processes, model, self.tokenizer)
        others = with_prompt(self.config, "document", self.other_answers())
        return evaluate_pairs(queries, answers, embed, self.arguments.temperature, others)

    def finish(self, folder: Path) -> dict[str, Any]:
        """Have searches rank the best anew by their tokens where that pays on the held-out pairs."""
        pipeline = load_search_pipeline(folder, dtype=torch.float32)
        chosen = choose_rerank(pipeline, self.held_out())
        pipeline.model.config.update({name: chosen[name] for name in ("rerank_depth", "rerank_weight")})
        pipeline.model.config.save_pretrained(folder)
        if chosen["rerank_depth"]:
            logger.info("Searches will rank the best %d anew by their tokens. --rerank 0 is faster.", RERANK_DEPTH)
        return {"rerank": chosen}

    def held_out(self) -> RetrievalData:
        """Each held-out query, and all answers that it is to rank."""
        pairs = self.data.evaluation
        return pairs_as_retrieval(pairs["query"][:], pairs["answer"][:], self.other_answers())

    def other_answers(self) -> list[str]:
        """What is ranked beside few held-out answers: among ten texts alone, every model finds the right one."""
        if self.arguments.evaluation_source:
            return []
        column = "answer" if "answer" in self.data.train.column_names else "body"
        return self.data.train[column][: max(0, MOST_HELD_OUT - len(self.data.evaluation))]

    def baselines(self) -> dict[str, dict[str, float]]:
        """BM25 on the held-out pairs."""
        pairs = self.held_out()
        run = Bm25(list(pairs.corpus.values())).rank(pairs.queries, list(pairs.corpus))
        return {"BM25": ranking_measures(pairs.qrels, run, ("nDCG@10", "RR@10"))}

    def facts(self) -> dict[str, Any]:
        source = self.arguments.data if self.arguments.documents is None else self.arguments.documents
        return {"data": describe_data(source), "train_rows": len(self.rows), "eval_rows": len(self.data.evaluation)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mined_epoch": torch.tensor(self.mined_epoch), "mined_rows": self.mined_rows}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mined_epoch, self.mined_rows = int(state["mined_epoch"]), state["mined_rows"]


class DocumentStage(RetrievalStage):
    """Documents without queries: each epoch cuts a new query out of every document."""

    unit, told_columns = "documents", ("text",)

    def tokenize(self) -> Dataset:
        longest = self.max_length - max(map(len, self.prompts))
        return tokenize_documents(self.data.train, self.tokenizer, longest)

    def texts(self, rows: list[int], step: int) -> tuple[list[list[int]], Tensor]:
        epoch = step // self.sampler.steps_per_epoch
        read = self.rows[rows]
        documents = [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]
        pairs = [draw_pair(document, self.arguments.seed, epoch) for document in documents]
        sides = zip(self.prompts, zip(*pairs, strict=True), strict=True)
        texts = [[first, *prompt, *rest] for prompt, side in sides for first, *rest in side]
        return texts, torch.tensor(read["text_id"] * 2)


def build_stage(arguments: RetrievalArguments, accelerator: Accelerator, checkpoint: Path | None) -> RetrievalStage:
    stage = RetrievalStage if arguments.documents is None else DocumentStage
    return stage(arguments, accelerator, checkpoint)
