"""The ranking loss against numbers worked by hand, and on two processes against one."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from two_processes import run_two_processes

from tinybert_hf.losses import MultipleNegativesRankingLoss, false_negatives, ranking_loss


def test_equal_embeddings_score_at_chance() -> None:
    ones = torch.ones(4, 8)
    ids = torch.arange(8)
    loss = MultipleNegativesRankingLoss()(ones, ones, ids[:4], ids[4:])
    assert loss.item() == pytest.approx(math.log(4))


def test_the_loss_is_cross_entropy_over_cosines_in_both_directions() -> None:
    queries, answers = torch.randn(3, 5), torch.randn(3, 5)
    expected = 0.0
    for texts, candidates in ((queries, answers), (answers, queries)):
        for i in range(3):
            cosines = [torch.cosine_similarity(texts[i], candidates[j], dim=0).item() for j in range(3)]
            expected -= math.log(math.exp(cosines[i] / 0.1) / sum(math.exp(c / 0.1) for c in cosines)) / 6
    ids = torch.arange(3)
    loss = MultipleNegativesRankingLoss(temperature=0.1)(queries, answers, ids, ids)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_explicit_negatives_enlarge_the_set_of_a_querys_candidates() -> None:
    ones = torch.ones(2, 4)
    loss = MultipleNegativesRankingLoss()(ones, torch.ones(6, 4), torch.arange(2), torch.arange(6))
    assert loss.item() == pytest.approx((math.log(6) + math.log(2)) / 2)


@pytest.mark.parametrize(
    ("query_ids", "answer_ids", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([1, 1, 3], [4, 5, 6], [[1, 1, 0], [1, 1, 0], [0, 0, 1]]),  # the same query twice
        ([1, 2, 3], [4, 4, 6], [[1, 1, 0], [1, 1, 0], [0, 0, 1]]),  # the same answer twice
        # A negative of row 0 (the fourth candidate) that answers query 3 elsewhere.
        ([1, 2, 3], [4, 5, 6, 6, 8, 9], [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]),
    ],
)
def test_equal_texts_are_no_negatives_of_each_other(
    query_ids: list[int], answer_ids: list[int], expected: list[list[int]]
) -> None:
    queries, answers = torch.tensor(query_ids), torch.tensor(answer_ids)
    rows, columns = false_negatives(queries, queries, answers[:3], answers, torch.arange(3))
    right = torch.eye(3, len(answers), dtype=torch.int)
    right[rows, columns] += 1
    assert right.tolist() == expected
    assert rows.tolist() == sorted(rows)


def test_a_masked_candidate_does_not_change_the_loss() -> None:
    queries, answers = torch.randn(2, 8), torch.randn(3, 8)
    ignored, none = torch.tensor([[0, 1], [2, 2]]), torch.empty(2, 0, dtype=torch.long)
    own = torch.arange(2)
    with_masked = ranking_loss(queries, answers, own, ignored, 0.05)
    without = ranking_loss(queries, answers[:2], own, none, 0.05)
    assert with_masked.item() == pytest.approx(without.item())


def test_the_loss_of_a_large_batch_is_that_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, answers = torch.randn(7, 8, requires_grad=True), torch.randn(14, 8, requires_grad=True)
    query_ids, answer_ids = (torch.arange(7) // 2, torch.arange(14) // 2)  # texts repeat within and across blocks

    def measure(block: int) -> list[Tensor]:
        monkeypatch.setattr("tinybert_hf.losses.QUERY_BLOCK", block)
        loss = MultipleNegativesRankingLoss()(queries, answers, query_ids, answer_ids)
        return [loss, *torch.autograd.grad(loss, (queries, answers))]

    for actual, expected in zip(measure(3), measure(7), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_loss_of_several_widths_is_the_mean_of_theirs() -> None:
    queries, answers, query_ids, answer_ids = (torch.randn(5, 8), torch.randn(5, 8), torch.arange(5), torch.arange(5))
    parts = [(queries[:, :dim], answers[:, :dim]) for dim in (2, 8)]
    losses = [MultipleNegativesRankingLoss()(*part, query_ids, answer_ids) for part in parts]
    loss = MultipleNegativesRankingLoss(dims=[2, 8])(queries, answers, query_ids, answer_ids)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


# ---- Two processes ----


def joint_batch() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A model in double precision, 8 queries, 8 answers and 8 negatives; texts repeat across the two halves."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    queries, answers = torch.randn(8, 6).double(), torch.randn(16, 6).double()
    query_ids, answer_ids = torch.arange(8), torch.arange(16) + 100
    query_ids[6] = query_ids[1]  # asked in both halves
    answer_ids[7] = answer_ids[0]  # answers in both halves
    answer_ids[8 + 5] = answer_ids[2]  # a negative in the second half that answers in the first
    return model, queries, answers, query_ids, answer_ids


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    model, queries, answers, query_ids, answer_ids = joint_batch()
    mine = torch.arange(4) + 4 * rank
    candidates = torch.cat((mine, mine + 8))
    loss = MultipleNegativesRankingLoss()(
        model(queries[mine]), model(answers[candidates]), query_ids[mine], answer_ids[candidates]
    )
    loss.backward()
    # Not DistributedDataParallel: destroyed after its process group, it can wait for a gloo thread that waits
    # for the interpreter lock it holds (torch 2.13; seen about once in forty runs).
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    torch.save((loss.detach(), model.weight.grad, model.bias.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradients_of_the_joint_batch(tmp_path: Path) -> None:
    first, second = run_two_processes(worker, tmp_path)

    model, queries, answers, query_ids, answer_ids = joint_batch()
    loss = MultipleNegativesRankingLoss()(model(queries), model(answers), query_ids, answer_ids)
    loss.backward()

    ignored = false_negatives(query_ids, query_ids, answer_ids[:8], answer_ids, torch.arange(8))
    assert ignored.shape[1], "the test would not see the masks: no text repeats"
    torch.testing.assert_close((first[0] + second[0]) / 2, loss.detach(), rtol=1e-6, atol=0)
    for replica in (first, second):
        torch.testing.assert_close(replica[1], model.weight.grad, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(replica[2], model.bias.grad, rtol=1e-5, atol=1e-7)
