"""The emulated testbed of a planned system: containers with limits, links, swap, and their proof.

Everything the devices need on this host is made here and gone when it is left: the folder of their
work, a swap file where one is asked for, private copies for what reads through the page cache (hard
links and shared files would share the cache too). Read `emulated_testbed` first.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.types import Plan, SystemPlan
from testbed.base import Testbed
from testbed.host.label import RunLabel, is_alive
from testbed.image import image_tag
from testbed.limits.limits import DeviceLimits, limit_notes
from testbed.links.link import LinkSpec
from testbed.local.local import NOTES as LOCAL_NOTES

if TYPE_CHECKING:  # Docker's client takes a while to import, and plain processes do without
    from testbed.docker.device import DockerDevice
    from testbed.docker.testbed import VerifierFactory
    from testbed.links.network import Network
    from testbed.verify.verifier import LimitVerifier


# What nearly every program reads of the image; else the first device would be charged for it.
_WARM_UP = ("python3", "-c", "import torch")


@contextmanager
def emulated_testbed(
    plan: Plan, system: SystemPlan, model_dirs: Sequence[Path], work_dir: Path
) -> Iterator[Testbed]:
    """The containers that a system runs in; none is made before the testbed's `up`.

    Raises:
        ConfigError: Devices need swap, which the host has not and was not asked to make.
        DeviceError: No daemon, no image, or no means for links.
    """
    count = system.world_size
    swap = plan.swap_need(system)
    # Swap that nothing is predicted to need is not asked of the host.
    limits = [lim if swap else replace(lim, swap=0) for lim in plan.limits[:count]]
    with open_testbed(
        work_dir,
        limits,
        plan.links[:count],
        mounts=tuple(dict.fromkeys(model_dirs)),
        link_backend=plan.config.link.backend,
        dilation=plan.dilation.factor,
        verifier=partial(_make_verifier, plan, limits, tuple(model_dirs)),
        swap=swap,
        may_make_swap=plan.config.testbed.make_swap,
    ) as testbed:
        yield testbed


def _make_verifier(
    plan: Plan,
    limits: Sequence[DeviceLimits],
    model_dirs: Sequence[Path],
    devices: "Sequence[DockerDevice]",
    network: "Network",
) -> "LimitVerifier":
    from testbed.verify.probe import disk_files
    from testbed.verify.tolerances import Expected
    from testbed.verify.verifier import LimitVerifier

    return LimitVerifier(
        devices,
        [
            Expected(limit, link, disk_files(folder))
            for limit, link, folder in zip(limits, plan.links, model_dirs, strict=False)
        ],
        network,
        dilation=plan.dilation.factor,
        host_read_bps=plan.host_read_bps,
        oversubscribed=bool(plan.dilation.oversubscribed),
        has_faults=bool(plan.config.link.faults),
    )


@contextmanager
def open_testbed(
    work_dir: Path,
    limits: Sequence[DeviceLimits],
    links: Sequence[LinkSpec],
    *,
    mounts: Sequence[Path],
    link_backend: str,
    dilation: float,
    verifier: "VerifierFactory | None" = None,
    swap: int = 0,
    may_make_swap: bool = False,
) -> Iterator[Testbed]:
    """Containers with limits and links, after what dead runs left was removed."""
    from testbed.docker.cleanup import reap
    from testbed.docker.daemon import Daemon
    from testbed.docker.testbed import DockerTestbed
    from testbed.limits.swap import ensure_swap, reap_swap

    label = RunLabel.mine(secrets.token_hex(6))
    swap_dir = work_dir.parent
    with ExitStack() as stack:
        daemon = Daemon()
        stack.callback(daemon.close)
        reap(daemon.client, host=label.host, is_alive=is_alive)
        reap_swap(swap_dir)
        if swap:
            stack.enter_context(ensure_swap(swap, swap_dir, label, may_make=may_make_swap))
        yield stack.enter_context(
            DockerTestbed(
                work_dir,
                limits,
                links,
                image=image_tag(),
                mounts=mounts,
                label=label,
                link_backend=link_backend,
                dilation=dilation,
                verifier_factory=verifier,
                warm_up=_WARM_UP,
            )
        )


def notes_of(plan: Plan, system: SystemPlan) -> list[str]:
    """What a testbed does not limit, and how it was set up, for the record and the table."""
    if not plan.is_emulated:
        return list(LOCAL_NOTES)
    limits = plan.limits[: system.world_size]
    notes = list(limit_notes(limits))
    swap = max((limit.swap for limit in limits), default=0)
    if swap and not plan.swap_need(system):
        notes.append("docker: devices have swap, none is predicted to be needed and none was made")
    if plan.dilation.oversubscribed:
        notes.append(f"oversubscribed: {plan.dilation.oversubscribed}")
    return notes


def drop_page_cache(folders: Sequence[Path]) -> None:
    """Have the kernel forget what it cached of the files below some folders.

    Raises:
        OSError: A file cannot be opened.
    """
    for path in sorted(p for folder in dict.fromkeys(folders) for p in folder.rglob("*")):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # what is dirty stays
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def private_copies(folder: Path, count: int, parent: Path) -> tuple[Path, ...]:
    """A copy of a folder for each of some devices, below `parent`, which is removed with it."""
    copies = tuple(parent / f"private-{rank}" for rank in range(count))
    for copy in copies:
        shutil.copytree(folder, copy)
    return copies
