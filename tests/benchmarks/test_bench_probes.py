"""The probes that `make bench` compares with the base, kept as pytest-benchmark's history.

`pytest-benchmark compare` shows the files below `.benchmarks/`. Times of other jobs and machines
are history; what fails a change is `harness/regression`, which times both trees in one job.
"""

import pytest
import torch

from harness.regression.probe import PROBES

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]
ROUNDS = 7


@pytest.mark.parametrize("name", PROBES)
def test_probe(benchmark, tmp_path, name):
    torch.set_num_threads(1)
    with PROBES[name](tmp_path) as once:
        best_s = []
        benchmark.pedantic(lambda: best_s.append(once()), rounds=ROUNDS, warmup_rounds=1)
    # A round is several operations; what is compared is this, of one.
    benchmark.extra_info["seconds"] = best_s[1:]
    assert min(best_s) > 0
