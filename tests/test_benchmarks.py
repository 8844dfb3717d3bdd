"""The benchmarks run, and what they compare is comparable."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from training_run import write_pairs

from benchmarks.cold_start import ColdStartBenchmark, measure_cold_start
from benchmarks.encoding import EncodingBenchmark, measure_encoding
from benchmarks.matmul_share import MatmulShareBenchmark, forward_flops, measure_shares
from benchmarks.measure import alternate, make_model, peak_mib, run_alone
from benchmarks.training import TrainingBenchmark, compare, measure_training
from benchmarks.training_runs import Job, Peer, train_ours, train_theirs
from tinybert_hf import TinyBertModel
