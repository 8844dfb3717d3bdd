"""What a process of its own is asked to hold. It imports no more than that takes."""

import torch

from benchmarks.measure import peak_mib


def ask_for_a_pebibyte() -> float:
    return torch.empty(2**50, dtype=torch.uint8).sum().item()


def peak_holding(mebibytes: int) -> float:
    held = torch.ones(mebibytes, 2**20, dtype=torch.uint8)
    assert held[-1, -1] == 1
    return peak_mib()
