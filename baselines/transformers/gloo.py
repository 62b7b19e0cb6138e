"""The processes of a torch.distributed group over gloo: how they meet, who begins, when to give up.

`GlooGroup` joins them through a store at the master's address. The master writes each request into
the store, where workers wait for it; tensors travel over gloo. Every wait inside a request has a
deadline, and a peer that is gone or silent is an error by name; an idle worker waits as long as
the store lives. gloo neither encrypts nor authenticates, so the network must be trusted.
"""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch.distributed import distributed_c10d

from tpi.comm.deadlines import Deadlines
from tpi.comm.join import open_listener, parse_address, resolve
from tpi.errors import CommError, ConfigError, PeerLostError, PeerTimeoutError
from tpi.program.spec import NodeSpec, Request
from tpi.ranks import MASTER_RANK, Ranks

# The library is typed in part only; strict checking would refuse the rest.
dist: Any = torch.distributed

# gloo and its store raise RuntimeError for everything; these words tell what it was.
_SILENT = ("timed out", "timeout")
_LOST = ("connection", "broken pipe", "socket", "gloo/transport")


class GlooGroup:
    """All ranks of a spec, joined; `close` lets the others go."""

    def __init__(self, spec: NodeSpec) -> None:
        # Nothing is encrypted: beyond loopback only where that is allowed.
        resolve(spec.bind, spec.trust_network)
        self.ranks = Ranks(spec.rank, spec.world_size)
        self._deadlines = Deadlines().scaled(spec.time_scale)
        self._num_turns = 0
        if spec.master is None:
            raise ConfigError(f"{spec.system}: {spec.world_size} ranks need the master's address")
        _tell_libraries(spec, spec.master)
        with self.peers_named("the join"):
            self._store = self._open_store(spec.master)
            stall = timedelta(seconds=self._deadlines.stall_s)
            # Transformers makes groups of its own, and has no argument for their deadline.
            distributed_c10d.default_pg_timeout = stall
            dist.init_process_group(
                "gloo",
                store=self._store,
                rank=spec.rank,
                world_size=spec.world_size,
                timeout=stall,
            )

    def _open_store(self, master: str) -> Any:
        host, port = parse_address(master)
        options: dict[str, Any] = {}
        if self.ranks.is_master:
            # Bound by us, or it would listen on all addresses of this machine.
            options["master_listen_fd"] = open_listener(host, port, trust_network=True).detach()
        return dist.TCPStore(
            host,
            port,
            self.ranks.world_size,
            self.ranks.is_master,
            # The join's deadline is too short for the skew of libraries that take long to import.
            timeout=timedelta(seconds=self._deadlines.stall_s),
            wait_for_workers=False,
            **options,
        )

    @contextmanager
    def peers_named(self, during: str) -> Iterator[None]:
        """Turn an error of gloo into one that names what happened.

        Raises:
            PeerTimeoutError: Nothing came from a peer for the deadline.
            PeerLostError: A connection to a peer has ended.
        """
        try:
            yield
        except RuntimeError as exc:
            error = _named(str(exc))
            if error is None:
                raise
            text = " ".join(str(exc).split())[:300]
            raise error(f"rank {self.ranks.rank}, during {during}: {text}") from exc

    def announce(self, request: Request) -> None:
        """On the master: tell the workers what comes next."""
        self._say({"id": request.id, "prompt_ids": list(request.prompt_ids or ())})

    def follow(self) -> tuple[str, Sequence[int]] | None:
        """On a worker: the next request's id and prompt; None when the master has ended."""
        key = f"turn-{self._num_turns}"
        with self.peers_named("the wait for a request"):
            self._wait_idle(key)
            turn = json.loads(self._store.get(key))
            self._num_turns += 1
            if turn is None:
                self._store.set(f"left-{self.ranks.rank}", "")
                return None
        return turn["id"], turn["prompt_ids"]

    def _wait_idle(self, key: str) -> None:
        """Until there is such a key; a master that asks for nothing is no error."""
        interval = timedelta(seconds=self._deadlines.stall_s)
        while True:
            try:
                self._store.wait([key], interval)
                return
            except dist.DistStoreError as exc:
                if _named(str(exc)) is not PeerTimeoutError:
                    raise

    def _say(self, turn: dict[str, Any] | None) -> None:
        with self.peers_named("the start of a request"):
            self._store.set(f"turn-{self._num_turns}", json.dumps(turn))
        self._num_turns += 1

    def close(self, *, well: bool) -> None:
        """Leave; a master that ends `well` tells the workers and waits a moment for them."""
        if well and self.ranks.is_master:
            self._say(None)
            names = [f"left-{rank}" for rank in self.ranks.workers]
            # The store is this process's: a worker that is too slow finds it gone.
            with suppress(RuntimeError):
                self._store.wait(names, timedelta(seconds=self._deadlines.abort_s))
        if well:
            dist.destroy_process_group()


def _tell_libraries(spec: NodeSpec, master: str) -> None:
    """Set the variables that torchrun would set, and the interface that gloo uses."""
    host, port = parse_address(master)
    os.environ.update(
        RANK=str(spec.rank),
        LOCAL_RANK=str(MASTER_RANK),  # one rank a machine
        WORLD_SIZE=str(spec.world_size),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME=interface_of(spec.bind),
    )


def interface_of(address: str) -> str:
    """The network interface that has an address of this machine: gloo is told no address.

    Raises:
        ConfigError: None has it.
    """
    family, number = resolve(address, trust_network=True)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == family and a.address.partition("%")[0] == number for a in addresses):
            return name
    # The whole of 127.0.0.0/8 is the loopback interface's, though it lists one address.
    if family == socket.AF_INET and number.startswith("127."):
        return interface_of("127.0.0.1")
    raise ConfigError(f"bind {address!r} ({number}): no interface of this device has this address")


def _named(text: str) -> type[CommError] | None:
    lower = text.lower()
    if any(word in lower for word in _SILENT):
        return PeerTimeoutError
    return PeerLostError if any(word in lower for word in _LOST) else None
