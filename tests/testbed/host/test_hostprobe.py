"""The memory rate of a core: computed from what was timed, and plausible where it is really run."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.host.rates import core_read_gbps

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_core_reads_memory_at_a_plausible_rate():
    assert 0.3 < core_read_gbps() < 500


def test_importing_it_loads_no_numpy():
    code = "import sys, testbed.host.rates; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
