"""The ranking loss: functions of embeddings, never of texts or models.

Shapes: B queries of this process, W processes, D candidates = W x B x (1 + negatives), H hidden size.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUERY_BLOCK = 512  # queries whose similarities to all candidates are in memory together


def ranking_loss(
    query_embeddings: Tensor, candidate_embeddings: Tensor, answers: Tensor, ignored: Tensor, temperature: float
) -> Tensor:
    """Score each query against every candidate; its own answer must win.

    Softmax cross-entropy over cosine similarities (Henderson et al. 2017, arXiv:1705.00652, equation 4).

    Args:
        query_embeddings, candidate_embeddings: (B, H) and (D, H), any scale; normalised here.
        answers: (B,) row of each query's answer among the candidates.
        ignored: (2, N) rows and columns in (B, D) where a candidate must not count as a negative of a query.
        temperature: > 0; logits are similarities divided by it.

    Returns: mean loss in nats, fp32 scalar; ln(D) is chance.

    >>> perfect = torch.eye(2)
    >>> none = torch.empty(2, 0, dtype=torch.long)
    >>> round(ranking_loss(perfect, perfect, torch.tensor([0, 1]), none, temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    queries = nn.functional.normalize(query_embeddings.float(), dim=-1)
    candidates = nn.functional.normalize(candidate_embeddings.float(), dim=-1)
    logits = queries @ candidates.T / temperature  # (B, D)
    logits[ignored[0], ignored[1]] = -torch.inf
    return nn.functional.cross_entropy(logits, answers)


def false_negatives(
    query_ids: Tensor, all_query_ids: Tensor, all_answer_ids: Tensor, candidate_ids: Tensor, answers: Tensor
) -> Tensor:
    """Where a candidate other than a query's own answer is right for it too, by text identity.

    Candidate c is right for query i if c's text is the answer of any row that asks the text of i. That covers rows with
    the same query, rows with the same answer, and explicit negatives that answer the query in another row.

    Text ids are (B,) of this process's queries, (W x B,) of all queries and of their answers, (D,) of the candidates;
    `answers` is (B,), the row of each query's own answer among the candidates.

    Returns: (2, N) rows and columns of such pairs in (B, D), by rising row.
    """
    right, places = defaultdict(set), defaultdict(list)  # query -> its answers; text -> where it is a candidate
    for query, answer in zip(all_query_ids.tolist(), all_answer_ids.tolist(), strict=True):
        right[query].add(answer)
    for column, text in enumerate(candidate_ids.tolist()):
        places[text].append(column)
    rows = enumerate(zip(query_ids.tolist(), answers.tolist(), strict=True))
    found = [(row, c) for row, (query, own) in rows for text in right[query] for c in places[text] if c != own]
    return torch.tensor(found, dtype=torch.long, device=answers.device).view(-1, 2).T


def gather(tensor: Tensor) -> Tensor:
    """(B, ...) of every process -> (W x B, ...) on every process, in the order of their ranks."""
    if not torch.distributed.is_initialized():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class GatherWithGradients(torch.autograd.Function):
    """`gather` whose backward sums each row's gradients over all processes into the process that made it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
            gradient = gradient.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
        return gradient


class MultipleNegativesRankingLoss(nn.Module):
    """Ranking loss with the texts of all processes as in-batch negatives (MNRL), in both directions.

    The mean of two cross-entropies: each query has to find its answer among all answers and explicit negatives, and
    each answer its query among all queries. The mean over processes of this loss, and of its gradients, equals that of
    one process with the joint batch.

    Args:
        temperature: > 0; sentence-transformers calls 1 / temperature `scale`.
        dims: the loss is the mean over the first so many dimensions of the embeddings (Matryoshka training, Kusupati et
            al. 2022, arXiv:2205.13147); None takes all.
    """

    def __init__(self, temperature: float = 0.05, dims: Sequence[int] | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.dims: Sequence[int | None] = dims or [None]

    def forward(
        self, query_embeddings: Tensor, answer_embeddings: Tensor, query_ids: Tensor, answer_ids: Tensor
    ) -> Tensor:
        """Loss of this process's queries against everybody's candidates: mean in nats, fp32 scalar.

        `query_embeddings` is (B, H); `answer_embeddings` (B x (1 + negatives), H), the B answers first, then the
        explicit negatives. The ids are those of their texts (`data.text_id`).
        """
        batch_size = len(query_embeddings)
        forth = self.one_way(query_embeddings, answer_embeddings, query_ids, answer_ids)
        back = self.one_way(answer_embeddings[:batch_size], query_embeddings, answer_ids[:batch_size], query_ids)
        return (forth + back) / 2

    def one_way(
        self, query_embeddings: Tensor, answer_embeddings: Tensor, query_ids: Tensor, answer_ids: Tensor
    ) -> Tensor:
        """Cross-entropy of this process's rows over everybody's candidates; the arguments are those of `forward`."""
        batch_size = len(query_embeddings)
        candidates, candidate_ids = GatherWithGradients.apply(answer_embeddings), gather(answer_ids)  # (D, H), (D,)
        all_query_ids, all_answer_ids = gather(query_ids), gather(answer_ids[:batch_size])
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        own = torch.arange(batch_size, device=candidates.device) + rank * len(answer_embeddings)

        def block_loss(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
            ignored = false_negatives(query_ids[rows], all_query_ids, all_answer_ids, candidate_ids, own[rows])
            losses = [
                ranking_loss(queries[rows, :dim], candidates[:, :dim], own[rows], ignored, self.temperature)
                for dim in self.dims
            ]
            return torch.stack(losses).mean() * (len(own[rows]) / batch_size)

        # Of a large batch the similarities alone would not fit: they are computed again for the backward pass.
        blocks = [slice(start, start + QUERY_BLOCK) for start in range(0, batch_size, QUERY_BLOCK)]
        compute: Callable[..., Tensor] = (
            partial(checkpoint, block_loss, use_reentrant=False) if len(blocks) > 1 else block_loss
        )
        return torch.stack([compute(query_embeddings, candidates, rows) for rows in blocks]).sum()
