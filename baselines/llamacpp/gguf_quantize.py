"""Quantizes a GGUF file with llama.cpp: `-m baselines.llamacpp.gguf_quantize IN OUT TYPE`.

`quantize` starts that program and waits for it. The library aborts on unexpected input, keeps its
buffers and prints much, so it gets a process of its own. Settings are those of its own tool,
`llama-quantize IN OUT TYPE`.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from baselines.llamacpp.library import library_log, set_fields
from tpi.errors import EXIT_OK, ConfigError, TpiError, WeightsError

_FTYPES = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}
# Rows of a tensor that are in memory at once; the library's own default is 8 GiB.
_MAX_BUFFER_BYTES = 256 << 20
_POLL_S = 0.25


def quantize(plain: Path, out: Path, file_type: str, show: Callable[[int], None]) -> None:
    """Write `plain` as a quantized file; `show` gets the bytes written, every now and then.

    Raises:
        WeightsError: llama.cpp refused, with its own words.
    """
    module = "baselines.llamacpp.gguf_quantize"
    command = [sys.executable, "-m", module, str(plain), str(out), file_type]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C is this process's to handle: it ends the child itself.
        start_new_session=True,
    ) as process:
        try:
            lines = _follow(process, out, show)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        text = lines[-1] if lines else f"no word, status {process.returncode}"
        raise WeightsError(f"{plain}: quantizing failed: {text.removeprefix('error: ')}")


def _follow(process: subprocess.Popen[str], out: Path, show: Callable[[int], None]) -> list[str]:
    """Wait for the end, showing how large its file is; returns the lines of its log."""
    while True:
        try:
            return process.communicate(timeout=_POLL_S)[1].strip().splitlines()
        except subprocess.TimeoutExpired:
            show(out.stat().st_size if out.exists() else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` says; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 3 or arguments[2] not in _FTYPES:
            kinds = "|".join(_FTYPES)
            raise ConfigError(f"usage: python -m baselines.llamacpp.gguf_quantize IN OUT {kinds}")
        _run(Path(arguments[0]), Path(arguments[1]), arguments[2])
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    return EXIT_OK


def _run(plain: Path, out: Path, file_type: str) -> None:
    import ctypes

    import llama_cpp

    log = library_log()
    params = llama_cpp.llama_model_quantize_default_params()
    ftype = getattr(llama_cpp, _FTYPES[file_type])
    set_fields(params, ftype=ftype, nthread=0, max_buf_size=_MAX_BUFFER_BYTES)
    status = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(out).encode(), ctypes.byref(params)
    )
    if status:
        raise WeightsError(log.first_error or f"llama.cpp ended with status {status}")


if __name__ == "__main__":
    sys.exit(main())
