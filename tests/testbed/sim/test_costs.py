import pytest

from testbed.sim.costs import Costs
from tests.testbed.sim.sims import free_calibration, make_run


@pytest.mark.parametrize(
    ("rows", "start", "keys"),
    [(1, 0, 1), (9, 0, 5), (1, 7, 8), (9, 10, 19)],
)
def test_a_later_chunk_attends_to_all_keys_and_the_first_to_those_before(rows, start, keys):
    calibration = free_calibration(attend={"float32": ((1, 1e6),)})
    run = make_run(size=2)
    found = Costs(run, calibration).attend(rows, start, [3, 0])
    flops = 4 * rows * keys * 3 * run.model.head_size
    assert found.tolist() == pytest.approx([flops / 1e6, 0])
