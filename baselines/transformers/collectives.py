"""The cost of torch.distributed's collectives: seconds spent inside, bytes that sockets sent.

gloo counts nothing. `CollectiveClock` times the functions through which Transformers reaches it
(some microseconds a call); `sent_bytes` asks the kernel, which counts per TCP connection.
"""

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from tpi.trace import Tracer

# struct tcp_info of linux/tcp.h: 64-bit tcpi_bytes_sent and tcpi_bytes_retrans (since 4.19).
_SENT_AND_AGAIN = struct.Struct("=QQ")
_SENT_OFFSET = 200
_TCP_INFO_BYTES = 256


class CollectiveClock:
    """Adds up the seconds of this process in collectives, waiting for slower ranks included.

    Attributes:
        tracer: Gets "allreduce".
    """

    def __init__(self) -> None:
        self.tracer = Tracer()
        self._inside = False
        # `all_reduce` after each row-wise layer; the rest where DTensors are put together.
        for module, names in (
            (dist, ("all_reduce",)),
            (functional, ("all_reduce", "all_gather_single", "wait_tensor")),
        ):
            for name in names:
                setattr(module, name, self._timed(getattr(module, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # one inside another counts once
                return call(*args, **kwargs)
            self._inside = True
            try:
                with self.tracer.span("allreduce"):
                    return call(*args, **kwargs)
            finally:
                self._inside = False

        return timed


def sent_bytes() -> int | None:
    """Payload bytes that this process's TCP connections have sent, without repetitions.

    None where the kernel does not count them. Connections that have closed are forgotten.
    """
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        # A descriptor may close meanwhile, and not every one is a socket.
        with suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                is_internet = sock.family in (socket.AF_INET, socket.AF_INET6)
                if not is_internet or sock.type != socket.SOCK_STREAM:
                    continue
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            if len(info) < _SENT_OFFSET + _SENT_AND_AGAIN.size:
                return None
            sent, again = _SENT_AND_AGAIN.unpack_from(info, _SENT_OFFSET)
            total += sent - again
    return total
