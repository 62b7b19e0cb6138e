"""Every system in containers, from the command line, with real programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from baselines.registry import SYSTEMS

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def run(tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, "run.py", *arguments, f"weights.dir={tmp_path}/weights",
         f"results_dir={tmp_path}/runs", "allow_concurrent=true"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    paths = sorted(tmp_path.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    records = [json.loads(path.read_text()) for path in paths]
    return done, {record["system"]: record for record in records}  # the latest of each


def run_until_valid(tmp_path, *arguments):
    """What a user does on a host that others use: the same command measures again what did not
    hold.
    """
    for _ in range(4):
        done, records = run(tmp_path, *arguments)
        if not any("emulation" in line for line in done.stdout.splitlines()):
            break
    return done, records


def test_every_system_runs_in_containers_and_its_tokens_are_right(tmp_path):
    done, records = run_until_valid(
        tmp_path, "model=tiny", "devices=2", "systems=all", "testbed=docker", "repeats=1",
        "link.delay_ms=5", "link.rate_mbps=500", "device.memory=1GiB",
        "workload.prompt_tokens=8", "workload.new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(records) == {name for name in SYSTEMS if f"{name}: the package" not in done.stdout}
    for name, record in records.items():
        assert (record["status"], record["check"]["passed"]) == ("ok", True), (name, record)
    proof = records["tpi"]["calibration"]["proofs"][0]
    assert {"before", "after", "conditions"} <= set(proof)
    assert proof["problems"] == []
    assert "reno" in json.dumps(proof["links"]["settings"])
    assert "docker: CPU not limited" in records["tpi"]["environment"]["testbed_notes"]
    memory = records["tpi"]["metrics"]["peak_memory"]
    assert all(100e6 < peak < 1 << 30 for peak in (*memory["rss_hwm"], *memory["cgroup_peak"]))
    text = "testbed docker (backend docker), devices free (1 GiB), link ideal (5 ms, 500 Mbit/s)"
    assert text in " ".join(done.stdout.split())


def test_more_than_a_device_has_is_oom_with_limit_and_peak(tmp_path):
    done, records = run(
        tmp_path, "model=tiny", "devices=1", "systems=[transformers]", "testbed=docker",
        "repeats=2", "device.memory=350MiB", "workload.new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr  # a result, not a failure
    record = records["transformers"]
    assert record["status"] == "oom"
    assert "at its device's limit of 350 MiB (peak 350 MiB)" in record["reason"]
    assert len(record["samples"]) == 1
    assert "may end oom" in done.stdout


def test_faults_of_links_are_made_and_kept_with_the_record(tmp_path):
    fault = "link.faults=[{device: 1, kind: delay, value: 40, at_s: 0, for_s: 60}]"
    done, records = run_until_valid(
        tmp_path, "model=tiny", "devices=2", "systems=[tpi-resident]", "testbed=docker",
        "repeats=1", "link.delay_ms=5", fault, "workload.new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = records["tpi-resident"]
    # 15 allreduces of 20 ms, each 80 ms longer there and back.
    assert record["metrics"]["token_latency_s"]["median"] > 15 * 0.08
    assert {"type": "LinkFaults", "changes": 2} in record["notes"]


def test_what_no_container_can_be_made_of_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    done, records = run(tmp_path, "model=tiny", "testbed=klonet", "device.swap=0", "repeats=1")
    assert done.returncode == 15
    assert "Docker daemon does not answer" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "weights/tiny").exists()
    assert not records
