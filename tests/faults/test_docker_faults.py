"""One repeat in real containers that goes wrong, in every way FAULTS 4.4 names, judged rightly."""

import signal
import time
from pathlib import Path

import docker.errors
import pytest

from results.records.schema import ProgramEnd
from testbed.base import DeviceError
from testbed.docker.cleanup import reap
from testbed.host.label import RunLabel, is_alive
from tests.faults import beds
from tests.faults.beds import (
    LIMIT_BYTES,
    Seen,
    await_none,
    containers,
    log_tails,
    make_bed,
    peaks,
    run_in,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(90)]


@pytest.fixture
def own(tmp_path):
    """Label of this test's containers; afterwards none of them may be left."""
    label = RunLabel.mine(f"test-{tmp_path.name}")
    yield label
    await_none(lambda: containers(f"org.tpi-lab.run={label.run_id}"), 15)


def test_good_system_ends_ok(tmp_path, own):
    with make_bed(tmp_path, 2, label=own) as bed:
        ends, repeat = run_in(bed, tmp_path, 2)
    assert (repeat.status, repeat.reason) == ("ok", "")
    assert repeat.tokens == (0, 1, 2, 3)
    assert [end.code for end in ends] == [0, 0]
    assert all(0 < peak < LIMIT_BYTES for peak in peaks(repeat))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("misdeed", ["oom", "oom_child", "oom_shared"])
def test_out_of_memory_is_oom_whoever_was_killed(tmp_path, own, misdeed, rank):
    with make_bed(tmp_path, 2, label=own) as bed:
        ends, repeat = run_in(bed, tmp_path, 2, misdeed=misdeed, rank=rank)
    assert repeat.status == "oom", repeat.reason
    assert f"rank {rank}" in repeat.reason
    assert ends[rank].oom
    assert not ends[1 - rank].oom
    # A parent that never noticed ends with 0: the counter alone decides.
    assert ends[rank].code == (0 if misdeed == "oom_child" else -signal.SIGKILL)
    peak = peaks(repeat)[rank]
    assert LIMIT_BYTES * 0.95 <= peak <= LIMIT_BYTES


def test_plain_kill_is_crashed_and_never_oom(tmp_path, own):
    def kill(devices):
        with beds.client() as daemon:
            daemon.kill(devices[1]._container.id)

    with make_bed(tmp_path, 2, label=own) as bed:
        ends, repeat = run_in(
            bed, tmp_path, 2, Seen("ready", kill), misdeed="hang", rank=1, token_s=60
        )
    assert repeat.status == "crashed", repeat.reason
    assert "rank 1" in repeat.reason
    assert (ends[1].code, ends[1].oom) == (-signal.SIGKILL, False)


def test_killed_program_is_crashed_and_never_oom(tmp_path, own):
    with make_bed(tmp_path, 1, label=own) as bed:
        ends, repeat = run_in(bed, tmp_path, misdeed="die")
    assert (repeat.status, ends[0].oom) == ("crashed", False)
    assert "signal 9" in repeat.reason


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"misdeed": "exit_1"}, 1, "rank 0: ended early with status 1"),
        ({"misdeed": "die_silently"}, 0, "rank 0: ended early with status 0"),
        ({"misdeed": "segfault"}, -signal.SIGSEGV, "rank 0: ended early with signal 11"),
        ({"misdeed": "segfault", "rank": 1}, -signal.SIGSEGV, "rank 1: ended early with signal 11"),
        ({"misdeed": "error", "rank": 1}, 14, "rank 1: rank-0/attn-003: truncated"),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_every_other_end_is_crashed_with_code_and_log_of_every_container(
    tmp_path, own, options, code, words
):
    options = {"say": "my last words", **options}
    with make_bed(tmp_path, 2, label=own) as bed:
        ends, repeat = run_in(bed, tmp_path, 2, **options)
    assert repeat.status == "crashed"
    assert words in repeat.reason
    assert ends[options.get("rank", 0)].code == code
    assert repeat.facts.exits == tuple(ProgramEnd(end.code, oom=False) for end in ends)
    assert ["my last words" in tail for tail in log_tails(repeat)] == [True, True]


@pytest.mark.parametrize("misdeed", ["hang", "stubborn"])
def test_hang_is_timeout_with_stacks_in_the_log(tmp_path, own, misdeed):
    with make_bed(tmp_path, 1, label=own) as bed:
        start_s = time.monotonic()
        _, repeat = run_in(bed, tmp_path, misdeed=misdeed, token_s=1)
    assert (repeat.status, repeat.reason) == ("timeout", "rank 0: waited 1 s for token 2 of 4 of"
                                              " request r0")  # fmt: skip
    (tail,) = log_tails(repeat)
    assert "most recent call first" in tail
    assert "in misbehave" in tail
    assert time.monotonic() - start_s < 30


def test_paused_container_is_removed(tmp_path, own):
    def pause(devices):
        with beds.client() as daemon:
            daemon.pause(devices[0]._container.id)

    with make_bed(tmp_path, 1, label=own) as bed:
        _, repeat = run_in(bed, tmp_path, 1, Seen("ready", pause), misdeed="hang", token_s=1)
    assert repeat.status == "timeout"
    assert not containers(f"org.tpi-lab.run={own.run_id}")


def test_forty_runs_in_a_row_leave_nothing(tmp_path, own):
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with beds.client() as daemon:
        networks = len(daemon.networks())
    with make_bed(tmp_path, 1, label=own) as bed:
        for count in range(40):
            bed.up(1)
            if count % 2:
                bed.down()  # else the next `up` does
    assert not containers(f"org.tpi-lab.run={own.run_id}")
    with beds.client() as daemon:
        assert len(daemon.networks()) == networks
    assert len(list(Path("/proc/self/fd").iterdir())) <= fds + 1


def test_foreign_containers_are_untouched(tmp_path, own):
    with beds.client() as daemon:
        made = daemon.create_container(
            beds.image(), ["sleep", "60"], labels={"org.tpi-lab-tests": own.run_id}
        )
        try:
            daemon.start(made["Id"])
            with make_bed(tmp_path, 2, label=own) as bed:
                assert run_in(bed, tmp_path, 2)[1].status == "ok"
            reap(daemon, host=own.host, is_alive=is_alive)
            assert daemon.inspect_container(made["Id"])["State"]["Running"]
        finally:
            daemon.remove_container(made["Id"], force=True)


def test_daemon_that_is_gone_is_one_line(tmp_path, own, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(DeviceError, match="the Docker daemon does not answer") as caught:
        make_bed(tmp_path, 1, label=own).up(1)
    assert "\n" not in str(caught.value)


def test_image_that_is_missing_is_one_line(tmp_path, own):
    with pytest.raises(DeviceError, match="make image") as caught:
        make_bed(tmp_path, 1, label=own, image="tpi-lab-device:none").up(1)
    assert "\n" not in str(caught.value)


def test_api_error_half_way_takes_the_first_device_away(tmp_path, own, monkeypatch):
    real = docker.APIClient.create_container
    calls = []

    def refuse_second(self, *args, **options):
        calls.append(options)
        if len(calls) == 2:
            raise docker.errors.APIError("500", explanation="no space left on device\nat line 3")
        return real(self, *args, **options)

    monkeypatch.setattr(docker.APIClient, "create_container", refuse_second)
    with pytest.raises(DeviceError, match="no space left on device") as caught:
        make_bed(tmp_path, 2, label=own).up(2)
    assert "\n" not in str(caught.value)
    assert not containers(f"org.tpi-lab.run={own.run_id}")
