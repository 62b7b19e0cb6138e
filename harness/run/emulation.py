"""The emulated testbed of a planned system: containers with limits, links and swap, verified.

What devices need on this host is made here and removed at the end: a swap file, and private copies
for systems that read through the page cache (hard links would share it).
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.types import Plan, SystemPlan
from testbed.base import Testbed
from testbed.host.label import RunLabel, is_alive
from testbed.image import image_tag
from testbed.limits.limits import DevicePlan, limit_notes
from testbed.local.local import NOTES as LOCAL_NOTES

if TYPE_CHECKING:  # Docker's client takes a while to import, and plain processes do without
    from testbed.docker.device import DockerDevice
    from testbed.docker.testbed import VerifierFactory
    from testbed.links.network import Network
    from testbed.verify.verifier import LimitVerifier


# Nearly every program reads this part of the image; else the first device would pay for it.
_WARM_UP = ("python3", "-c", "import torch")


def emulated_testbed(
    plan: Plan, system: SystemPlan, model_dirs: Sequence[Path], work_dir: Path
) -> AbstractContextManager[Testbed]:
    """The containers that a system runs in; none is made before the testbed's `up`.

    Raises:
        ConfigError: Devices need swap, which the host has not and was not asked to make.
        DeviceError: No daemon, no image, or no means for links.
    """
    swap = system.swap_need
    # The host need not provide swap that is not predicted to be needed.
    without = [replace(d, limits=replace(d.limits, swap=0)) for d in system.devices]
    devices = system.devices if swap else without
    return open_testbed(
        work_dir,
        devices,
        mounts=tuple(dict.fromkeys(model_dirs)),
        link_backend=plan.config.link.backend,
        dilation=plan.dilation.factor,
        verifier=partial(_make_verifier, plan, devices, tuple(model_dirs)),
        swap=swap,
        may_make_swap=plan.config.testbed.make_swap,
    )


def _make_verifier(
    plan: Plan,
    planned: Sequence[DevicePlan],
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
            Expected(device.limits, device.link, disk_files(folder))
            for device, folder in zip(planned, model_dirs, strict=True)
        ],
        network,
        dilation=plan.dilation.factor,
        host_read_bps=plan.host.read_bps,
        oversubscribed=bool(plan.dilation.oversubscribed),
        has_faults=bool(plan.config.link.faults),
    )


@contextmanager
def open_testbed(
    work_dir: Path,
    devices: Sequence[DevicePlan],
    *,
    mounts: Sequence[Path],
    link_backend: str,
    dilation: float,
    verifier: "VerifierFactory | None" = None,
    swap: int = 0,
    may_make_swap: bool = False,
) -> Iterator[Testbed]:
    """Containers with limits and links; removes first what dead runs left."""
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
                [device.limits for device in devices],
                [device.link for device in devices],
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
    """Notes on a testbed for record and table: what it does not limit, how it was set up."""
    if not plan.is_emulated:
        return list(LOCAL_NOTES)
    notes = list(limit_notes(system.limits))
    if any(limits.swap for limits in system.limits) and not system.swap_need:
        notes.append("docker: devices have swap, none is predicted to be needed and none was made")
    if plan.dilation.oversubscribed:
        notes.append(f"oversubscribed: {plan.dilation.oversubscribed}")
    return notes


def drop_page_cache(folders: Sequence[Path]) -> None:
    """Have the kernel forget its cache of the files below some folders; raises OSError."""
    for path in sorted(p for folder in dict.fromkeys(folders) for p in folder.rglob("*")):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # dirty pages would stay
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def private_copies(folder: Path, count: int, parent: Path) -> tuple[Path, ...]:
    """A copy of a folder for each of some devices, below `parent`, which is removed with it."""
    copies = tuple(parent / f"private-{rank}" for rank in range(count))
    for copy in copies:
        shutil.copytree(folder, copy)
    return copies
