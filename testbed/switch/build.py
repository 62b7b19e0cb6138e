"""The command that starts the switch: compiled from `switch.c` where a compiler is, else Python.

The compiled program is cached under a digest of source, compiler and flags, so it is built once. A
rename puts it in place, so two harnesses may build it at once. A compiler that fails is an error,
never a reason to take the Python program.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from testbed.base import DeviceError
from tpi.errors import ConfigError

BACKENDS = ("auto", "c", "python")
ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("switch.c")
CACHE_DIR = ROOT / "build" / "switch"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_S = 60.0


def find_compiler() -> Path | None:
    """The host's C compiler, or None."""
    for name in _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return Path(path).resolve()
    return None


def switch_command(backend: str = "auto") -> list[str]:
    """The command of the switch, to which its ports are appended; `auto` is C with a compiler.

    Raises:
        ConfigError: There is no such backend, or no compiler for it.
        DeviceError: The compiler failed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"switch backend: got {backend!r}, expected {' | '.join(BACKENDS)}")
    compiler = None if backend == "python" else find_compiler()
    if compiler is not None:
        return [str(compile_switch(compiler))]
    if backend == "c":
        found = f"none of {', '.join(_COMPILERS)} found"
        raise ConfigError(f"switch backend c: {found}; install gcc, or take auto or python")
    # Through `env`, since the switch must find this package from any working directory.
    return ["/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "testbed.switch.switch"]


def compile_switch(compiler: Path, source: Path = SOURCE, cache_dir: Path = CACHE_DIR) -> Path:
    """The program, from the cache or compiled now; a DeviceError if that fails."""
    try:
        program = cache_dir / f"switch-{_digest(compiler, source)}"
        if program.exists():
            return program
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache_dir) as folder:
            fresh = Path(folder) / "switch"
            _compile([str(compiler), *FLAGS, "-o", str(fresh), str(source)])
            fresh.replace(program)
    except OSError as exc:
        raise DeviceError(f"switch: cannot be built in {cache_dir}: {exc}") from exc
    return program


def _digest(compiler: Path, source: Path) -> str:
    """Of what decides the program; the compiler by its file, because upgrades keep its name."""
    stat = compiler.stat()
    parts = (str(compiler), str(stat.st_size), str(stat.st_mtime_ns), *FLAGS)
    return hashlib.sha256("\0".join(parts).encode() + source.read_bytes()).hexdigest()[:16]


def _compile(command: list[str]) -> None:
    env = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMPILE_S, env=env
        )
    except subprocess.TimeoutExpired as exc:
        raise DeviceError(f"switch: {command[0]} took over {_COMPILE_S:g} s") from exc
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        first = next((text for text in lines if "error" in text), lines[0])
        raise DeviceError(f"switch: {command[0]} failed ({done.returncode}): {first}")
