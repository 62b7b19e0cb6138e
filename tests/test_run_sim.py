"""`run.py` on a simulated testbed, from the command line: quick, light, and alone."""

import subprocess
import sys

import pytest

from harness.config.command_line import CONF_DIR
from results.records.store import RunStore

ROOT = CONF_DIR.parent
MOST_CPU_S = 3.0
# What would take seconds to import, or has no business in a simulation.
BANNED = ("torch", "transformers", "accelerate", "docker")
CODE = f"""
import sys, time, run
from tpi.program.procfs import peak_rss_bytes
status = run.main(sys.argv[1:])
bad = [name for name in {BANNED!r} if name in sys.modules]
# Not ru_maxrss, which begins at the peak of the process that started this one.
taken_s, peak = time.process_time(), peak_rss_bytes()
print(f"CPU {{taken_s:.2f}} s, {{peak >> 20}} MiB", file=sys.stderr)
if bad: sys.exit(f"imports {{bad}}")
if taken_s > {MOST_CPU_S}: sys.exit(f"took {{taken_s:.2f}} s of CPU")
if peak > 1 << 30: sys.exit(f"took {{peak}} bytes")
sys.exit(status)
"""


def simulate(tmp_path, *args):
    words = [f"results_dir={tmp_path}/runs", "testbed=sim", *args]
    return subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_70b_model_on_8_devices_is_answered_at_once(tmp_path):
    done = simulate(tmp_path, "model=llama2-70b", "devices=8", "systems=[tpi,accelerate]")
    assert done.returncode == 0, done.stderr
    assert "every number is simulated, from the calibration reference" in done.stdout
    assert "not computed" in done.stdout
    tpi, accelerate = sorted(RunStore(tmp_path / "runs").scan()[0], key=lambda r: r.system)[::-1]
    assert (tpi.status, accelerate.status) == ("ok", "ok")
    assert tpi.metrics is not None
    assert len(tpi.metrics.peak_memory.rss_hwm) == 8
    # Arithmetic: of 128 GiB of weights window 2 keeps next to nothing.
    assert 120 << 30 < (tpi.metrics.disk_bytes_per_token or 0) < 130 << 30


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_256_devices_take_no_longer(tmp_path):
    done = simulate(
        tmp_path, "model=llama2-70b", "devices=256", "systems=[tpi]", "workload.new_tokens=20"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_sweep_is_as_quick(tmp_path):
    done = simulate(
        tmp_path,
        "-m",
        "devices=2,4,8",
        "link.delay_ms=1,4",
        "systems=[tpi]",
        f"sweep_dir={tmp_path}/sweep",
    )
    assert done.returncode == 0, done.stderr
    assert len(RunStore(tmp_path / "runs").scan()[0]) == 6


LAUNCHER = """
import os
from dataclasses import dataclass
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore

class ForkingLauncher(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            if not (pid := os.fork()):
                super().launch([overrides], number)
                os._exit(0)
            os.waitpid(pid, 0)
        return []

@dataclass
class Conf:
    _target_: str = "hydra_plugins.forking.ForkingLauncher"

ConfigStore.instance().store(group="hydra/launcher", name="forking", node=Conf)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_installed_launcher_starts_the_jobs_where_it_likes(tmp_path, monkeypatch):
    """As Hydra's users install one; this one has a process per job."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "forking.py").write_text(LAUNCHER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["-m", "devices=2,4", "systems=[tpi]", "hydra/launcher=forking"]
    done = simulate(tmp_path, *words, f"sweep_dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:4]
    assert [row.split()[:2] for row in rows] == [["2", "tpi"], ["4", "tpi"]]
    failed = simulate(tmp_path, *words, "memory_budget=1MiB", f"sweep_dir={tmp_path}/sweep")
    assert failed.returncode == 2
    assert "run.py: tpi: memory_budget" in failed.stderr


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_devices_that_are_too_small_are_a_result(tmp_path):
    args = ["model=llama2-70b", "devices=8", "systems=[transformers]"]
    done = simulate(tmp_path, *args)
    assert done.returncode == 0, done.stderr
    assert "oom" in done.stdout
    assert "its limit is 8 GiB and 4 GiB of swap" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_what_is_wrong_is_one_line(tmp_path):
    done = simulate(tmp_path, "testbed.calibration=/no/such.json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("run.py: testbed.calibration: /no/such.json")
    assert not (tmp_path / "runs").exists()
