"""How the switch's program is found: cache, compiler, and what is refused."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from testbed.base import DeviceError
from testbed.switch import build
from tests.testbed.test_switch_protocol import BAD_ARGUMENTS
from tpi.errors import ConfigError

# A compiler that notes that it was called, and writes a program.
FAKE = """#!/bin/sh
echo called >> {log}
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\nexit 0\\n' > "$2"
"""


@pytest.fixture
def fake(tmp_path) -> tuple[Path, Path]:
    """A compiler, and the file in which it notes its calls."""
    log, compiler = tmp_path / "log", tmp_path / "cc"
    compiler.write_text(FAKE.format(log=log))
    compiler.chmod(0o755)
    return compiler, log


def calls(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_it_is_compiled_once(fake, tmp_path):
    compiler, log = fake
    first = build.compile_switch(compiler, cache_dir=tmp_path / "cache")
    assert build.compile_switch(compiler, cache_dir=tmp_path / "cache") == first
    assert calls(log) == 1
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_another_source_or_compiler_is_another_program(fake, tmp_path):
    compiler, _ = fake
    source = tmp_path / "other.c"
    source.write_text("int main(void) { return 0; }")
    other = tmp_path / "gcc"
    shutil.copy(compiler, other)
    programs = {
        build.compile_switch(compiler, cache_dir=tmp_path),
        build.compile_switch(compiler, source, tmp_path),
        build.compile_switch(other, cache_dir=tmp_path),
    }
    assert len(programs) == 3


def test_several_may_compile_at_once(fake, tmp_path):
    compiler, _ = fake
    cache_dir = tmp_path / "cache"
    got: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: got.append(build.compile_switch(compiler, cache_dir=cache_dir))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert list(cache_dir.iterdir()) == [got[0]]


def test_a_compiler_that_fails_is_an_error_with_its_line(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\necho 'x.c: In function' >&2\necho 'x.c:3: error: no' >&2\nexit 1"
    )
    compiler.chmod(0o755)
    with pytest.raises(DeviceError, match=r"failed \(1\): x\.c:3: error: no"):
        build.compile_switch(compiler, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_auto_does_not_hide_a_compiler_that_fails(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 4")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"failed \(4\): no message"):
        build.switch_command("auto")


def test_a_cache_that_cannot_be_written_is_an_error(fake, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DeviceError, match="cannot be built"):
        build.compile_switch(fake[0], cache_dir=tmp_path / "cache")


def test_without_a_compiler_auto_is_python_and_c_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.switch_command("auto") == build.switch_command("python")
    with pytest.raises(ConfigError, match="install gcc"):
        build.switch_command("c")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="expected auto"):
        build.switch_command("netem")


def test_the_python_switch_starts_from_any_folder(tmp_path):
    done = subprocess.run(
        build.switch_command("python"), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert '"message": "usage: switch' in done.stdout
    assert sys.executable in build.switch_command("python")


@pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("argv", BAD_ARGUMENTS, ids=" ".join)
def test_the_c_switch_refuses_the_same_arguments(argv):
    done = subprocess.run(
        [*build.switch_command("c"), *argv], stdin=subprocess.PIPE, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout.startswith('{"event":"error","message":"usage: switch')
