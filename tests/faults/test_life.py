"""`run.py` is interrupted, killed, disturbed and starved: what it says, and that nothing is left.

The same for plain processes and for containers. FAULTS 4.4: H1, H5-H9, H11, H12, H15.
"""

import json
import random
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from results.records.store import RunStore
from tests.faults import soak
from tests.faults.harnesses import (
    DOCKER,
    LOCAL,
    ROOT,
    Site,
    await_gone,
    await_hang,
    kill,
    wait_for_line,
)

HANG = {"misdeed": "hang"}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(
    params=[
        pytest.param(LOCAL, marks=pytest.mark.slow, id="local"),
        pytest.param(DOCKER, marks=pytest.mark.docker, id="docker"),
    ]
)
def site(request, tmp_path):
    """A place for runs; whatever the test did, afterwards nothing is left."""
    found = Site(tmp_path, request.param)
    yield found
    await_gone(found)
    assert not found.problems()


@pytest.fixture
def docker_site(tmp_path):
    found = Site(tmp_path, DOCKER)
    yield found
    await_gone(found)


def row(text, system):
    lines = text[text.index("TTFT") :].splitlines()
    return next(line.rstrip() for line in lines if re.match(rf"{system} +\w+ ", line))


@contextmanager
def running(argv):
    """A process that has said its first line, killed at the end."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_good_run_ends_ok_and_leaves_nothing(site):
    status, out, err = site.run()
    assert status == 0, out + err
    assert "equal" in row(out, "tpi")
    assert not site.leftovers()
    assert not site.scratch()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_signal_ends_all_within_15_s_with_130(site, number):
    with site.start(tpi=HANG) as process:
        await_hang(process, site)
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 130, out + err
    assert "interrupted" in row(out, "tpi")
    assert "Traceback" not in err
    assert not site.leftovers()
    assert not site.scratch()
    records = {record.system: record.status for record in RunStore(site.results).scan()[0]}
    assert records["tpi"] == "interrupted"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_signals_during_clean_up_end_it_at_once_and_leave_nothing(site, number):
    with site.start(tpi={"misdeed": "stubborn"}) as process:
        await_hang(process, site)
        start_s = time.monotonic()
        while process.poll() is None:
            process.send_signal(number)
            select.select([process.stderr], [], [], 0.1)
            assert time.monotonic() < start_s + 15
        took_s = time.monotonic() - start_s
        _, err = process.communicate(timeout=5)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert took_s < 1.5
    await_gone(site)


@pytest.mark.timeout(240)
def test_killed_at_random_moments_leaves_nothing_and_the_next_run_goes_on(site):
    draw = random.Random(4)
    start_s = time.monotonic()
    assert site.run()[0] == 0
    whole_s = time.monotonic() - start_s
    for count in range(2):
        with site.start(f"workload.seed={count}") as process:
            try:
                out, err = process.communicate(timeout=draw.uniform(0, 0.8 * whole_s))
            except subprocess.TimeoutExpired:
                kill(process)
            else:  # sooner than the first, which made the weights
                assert process.returncode == 0, out + err
        assert await_gone(site) < 15
    for count in range(2):
        status, out, err = site.run(f"workload.seed={count}")
        assert status == 0, out + err
    assert not site.scratch()
    assert {r.status for r in RunStore(site.results).scan()[0]} == {"ok"}


def test_finished_repeats_survive_a_kill_and_are_not_done_again(site):
    with site.start("repeats=50") as process:
        wait_for_line(process, "tpi, repeat 2: ok")
        kill(process)
    await_gone(site)
    (record,) = [r for r in RunStore(site.results).scan()[0] if r.system == "tpi"]
    assert record.num_ok >= 2
    before = RunStore(site.results).repeats(record)
    status, _, err = site.run(f"repeats={record.num_ok + 1}")
    assert status == 0, err
    assert f"tpi: repeats there: {record.num_ok}, to go: 1" in err
    after = RunStore(site.results).repeats(RunStore(site.results).read(record.run_id))
    assert after[: len(before)] == before


DISK_FULL = """
import json, subprocess, sys
from pathlib import Path
results = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(results)], check=True)
first = subprocess.run(json.loads(sys.argv[2])).returncode
with (results / "fill").open("wb", buffering=0) as file:
    try:
        while True:
            file.write(b"x" * 4096)
    except OSError:
        pass
second = subprocess.run(json.loads(sys.argv[3])).returncode
from results.records.store import RunStore
records, problems = RunStore(results).scan()
left = [str(p) for p in results.rglob("*.tmp")]
statuses = [r.status for r in records]
print("SEEN", json.dumps([first, second, statuses, [str(p) for p in problems], left]))
"""


@pytest.mark.docker
def test_full_disk_leaves_earlier_records_and_ends_with_15(tmp_path):
    """In a mount namespace of its own, so that the full disk is nobody else's."""
    site = Site(tmp_path, LOCAL)
    site.results.mkdir()
    commands = []
    for seed in (1, 2):
        with site.start(f"workload.seed={seed}") as process:
            commands.append(json.dumps(process.args))
            kill(process)
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", DISK_FULL, str(site.results), *commands],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    seen = re.search(r"SEEN (.*)", done.stdout)
    assert seen, done.stdout + done.stderr
    first, second, statuses, problems, left = json.loads(seen[1])
    assert (first, second) == (0, 15), done.stdout + done.stderr
    assert statuses == ["ok", "ok"]
    assert (problems, left) == ([], [])
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("TTFT") >= 2  # the table of what was measured until then


def test_second_harness_is_refused_and_names_the_first(site):
    with site.start(tpi=HANG) as process:
        await_hang(process, site)
        status, out, err = site.run("workload.seed=9")
        assert (status, out) == (15, "")
        assert f"process {process.pid})" in err
        assert "allow_concurrent=true" in err
        assert len(err.splitlines()) == 1
        kill(process)
    # A killed one holds nothing.
    assert site.run("workload.seed=9")[0] == 0


@pytest.mark.timeout(240)
def test_two_that_may_run_side_by_side_are_both_marked(site):
    with site.start("workload.seed=1", "repeats=2", tpi={"wait_s": 2}) as process:
        wait_for_line(process, "tpi, repeat 1")
        status, out, err = site.run("workload.seed=2", "allow_concurrent=true")
        assert status == 0, out + err
        assert "contended" in out
        first_out, first_err = process.communicate(timeout=120)
    assert process.returncode == 0, first_err
    assert "contended" in first_out


@pytest.mark.docker
def test_out_of_memory_is_a_row_of_the_table(docker_site):
    status, out, err = docker_site.run("device.memory=512MiB", tpi={"misdeed": "oom"})
    assert status == 0, out + err  # on a device with a limit it is a result
    assert "oom" in row(out, "tpi")
    assert "ok" in row(out, "transformers")
    (record,) = [r for r in RunStore(docker_site.results).scan()[0] if r.system == "tpi"]
    assert record.status == "oom"
    assert "limit of 512 MiB (peak 5" in record.reason


NO_DELAY = """
from dataclasses import replace
import testbed.links.network as network
real = network.open_network
network.open_network = lambda links, **options: real(
    [replace(link, delay_s=0.0) for link in links], **options)
"""


@pytest.mark.docker
def test_emulation_that_is_not_in_force_is_invalid(docker_site):
    status, out, err = docker_site.run(prelude=NO_DELAY)
    assert status == 1, out + err
    assert "invalid" in row(out, "tpi")
    records = [r for r in RunStore(docker_site.results).scan()[0] if r.system == "tpi"]
    assert [r.status for r in records] == ["invalid"]
    assert records[0].metrics is None


NO_IMAGE = """
import harness.run.emulation as emulation
import testbed.image.build as build
emulation.image_tag = build.image_tag = lambda: "tpi-lab-device:000000000000"
"""


@pytest.mark.docker
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env": {"DOCKER_HOST": "unix:///nowhere/docker.sock"}}, "does not answer"),
        ({"env": {"DOCKER_HOST": "tcp://127.0.0.1:1"}}, "not this host's"),
        ({"prelude": NO_IMAGE}, "make image"),
    ],
    ids=["no daemon", "remote daemon", "no image"],
)
def test_docker_that_cannot_be_used_is_one_line_soon(docker_site, options, words):
    start_s = time.monotonic()
    status, out, err = docker_site.run(**options)
    assert time.monotonic() - start_s < 30
    assert (status, out) == (15, ""), err
    assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.docker
@pytest.mark.timeout(180)
def test_daemon_that_goes_away_in_mid_run_is_one_line(docker_site, tmp_path):
    """The daemon itself stays: a relay between it and the harness breaks."""
    relay = tmp_path / "docker.sock"
    argv = [sys.executable, "-m", "tests.faults.relay", str(relay), "/var/run/docker.sock"]
    with (
        running(argv) as relaying,
        docker_site.start(tpi=HANG, env={"DOCKER_HOST": f"unix://{relay}"}) as process,
    ):
        await_hang(process, docker_site)
        relaying.kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode in (1, 15), out + err
    assert "Traceback" not in err
    await_gone(docker_site, 30)


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_soak_of_six_runs(tmp_path, capsys):
    assert soak.main(["--runs", "6", "--seed", "7", "--folder", str(tmp_path)]) == 0
    assert "nothing is left" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
