"""Helpers for users of the llama.cpp library: they collect its log and set its parameters.

`llama_cpp` is imported inside of functions only: it is an optional extra, and the harness plans
without it.
"""

import ctypes
import functools
import logging
from typing import Any

from tpi.errors import ConfigError

log = logging.getLogger(__name__)

# Of `enum ggml_log_level` in ggml.h (llama_cpp/_logger.py has those of an older version).
_WARN, _ERROR, _CONTINUE = 3, 4, 5


@functools.cache
def library_log() -> "LibraryLog":
    """The one log; the library has one for the whole process and keeps a pointer to it."""
    return LibraryLog()


class LibraryLog:
    """Takes the library's log over: warnings and errors go to ours, the first error is kept.

    The first error names the cause; later ones only name the call that failed. Use `library_log()`:
    if a second log replaced this one, the library would call freed memory.
    """

    def __init__(self) -> None:
        import llama_cpp

        self.first_error = ""
        self._level = 0
        self._line = ""
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def forget(self) -> None:
        """Begin anew, before a call whose errors are asked for."""
        self.first_error = ""

    def _take(self, level: int, text: bytes, _user_data: object) -> None:
        if level != _CONTINUE:
            self._level, self._line = level, ""
        self._line += text.decode("utf-8", "replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if self._level == _ERROR and line:
            log.error("llama.cpp: %s", line)
            self.first_error = self.first_error or line
        elif self._level == _WARN and line:
            log.warning("llama.cpp: %s", line)


def set_fields(params: Any, **values: object) -> None:
    """Set fields of one of the library's structures.

    Raises:
        ConfigError: It has no such field; ctypes alone would ignore the setting silently.
    """
    known = {name for name, *_ in params._fields_}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"llama-cpp-python: {type(params).__name__} has no field {name}"
                "; install the version in constraints.txt"
            )
        setattr(params, name, value)
