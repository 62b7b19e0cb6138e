"""Allreduces are found by name, also those of other packages, which run, simulate and plan."""

import subprocess
import sys

import pytest

from baselines.simulate import simulate
from tests.comm.allreduces.traffic import traffic
from tests.testbed.sim.sims import free_calibration, make_run
from tpi.comm.allreduces.base import AllReduceAlgorithm
from tpi.comm.allreduces.registry import allreduce_names, find_allreduce
from tpi.errors import ConfigError
from tpi.model_config import load_preset
from tpi.options import ComputeOptions
from tpi.planner.device_plan import PlanOptions, make_report

BUILT_IN = ("star", "tree", "ring", "direct", "exchange")


def test_built_in_ones_come_first_and_in_order():
    assert allreduce_names()[:5] == BUILT_IN
    assert [find_allreduce(name).name for name in BUILT_IN] == list(BUILT_IN)


@pytest.mark.usefixtures("toys")
def test_one_of_another_package_is_listed_and_found():
    assert "chain" in allreduce_names()
    found = find_allreduce("chain")
    assert isinstance(found, AllReduceAlgorithm)
    assert find_allreduce("chain") is found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rign", r"allreduce: got 'rign', expected star \| tree \| .*; did you mean ring\?"),
        ("xyz", r"allreduce: got 'xyz', expected star \| tree \| ring \| direct \| exchange"),
        ("missing", "allreduce missing: toy_allreduces:Missing cannot be imported: Attribute"),
        ("absent", "allreduce absent: no_such_package:Chain cannot be imported: ModuleNotFound"),
        ("alien", "allreduce alien: pathlib:Path is no class that derives from AllReduceAlgor"),
        ("misnamed", "allreduce misnamed: toy_allreduces:Misnamed has another name: 'other'"),
    ],
)
@pytest.mark.usefixtures("toys")
def test_what_cannot_be_used_is_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        find_allreduce(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("toys")
def test_one_of_another_package_is_simulated():
    run = make_run(options={"window": 2, "allreduce": "chain"}, prompt_tokens=1, new_tokens=1)
    events = simulate(run, free_calibration()).events
    sent = [event.fields["messages_sent"] for _, event in events if event.name == "counters"]
    times, size = 2 * run.model.num_layers - 1, run.world_size
    each = [traffic("chain", r, size, run.model.hidden_size, 4)[0] for r in range(size)]
    # And the broadcast from the master, or the part of the last sum to it.
    assert sent == [times * n + (size - 1 if r == 0 else 1) for r, n in enumerate(each)]


@pytest.mark.usefixtures("toys")
def test_one_of_another_package_is_planned():
    report = make_report(
        "tiny", load_preset("tiny"), PlanOptions(4, compute=ComputeOptions(allreduce="chain"))
    )
    payload_s = 8 * 4 * load_preset("tiny").hidden_size / 300e6
    assert report.allreduce_s == pytest.approx(4 * 0.001 + 6 * payload_s)


@pytest.mark.usefixtures("toys")
def test_what_a_class_does_not_say_is_named():
    with pytest.raises(ConfigError, match="allreduce mute: Mute does not say what it costs"):
        make_report(
            "tiny", load_preset("tiny"), PlanOptions(4, compute=ComputeOptions(allreduce="mute"))
        )
    run = make_run(options={"window": 2, "allreduce": "mute"})
    with pytest.raises(ConfigError, match="mute: Mute does not say which messages it sends"):
        simulate(run, free_calibration())


def test_planning_an_allreduce_imports_neither_torch_nor_numpy():
    code = (
        "import sys, tpi.comm.allreduces.registry as r; r.find_allreduce('ring')\n"
        "bad = {'torch', 'numpy', 'importlib.metadata'} & set(sys.modules)\n"
        "if bad: sys.exit(f'imports {bad}')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
