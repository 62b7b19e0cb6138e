"""Finding the one disk under a folder, in fake sysfs trees; whatever is not one is refused."""

import os
from pathlib import Path

import pytest

from testbed.limits.blockdev import Disk, disk_of, disk_of_number
from tpi.errors import ConfigError

VDA, SDA1 = os.makedev(254, 0), os.makedev(8, 1)


@pytest.fixture
def root(tmp_path):
    """A host with a disk `vda`, a disk `sda` with a partition, and LVM on it."""
    add_disk(tmp_path, "virtio1/block/vda", "254:0")
    add_disk(tmp_path, "ata1/block/sda", "8:0")
    add_disk(tmp_path, "ata1/block/sda/sda1", "8:1")
    (tmp_path / "sys/devices/ata1/block/sda/sda1/partition").write_text("1\n")
    add_disk(tmp_path, "virtual/block/dm-0", "253:0")
    add_disk(tmp_path, "pci/block/cciss!c0d0", "104:0")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "28 27 0:25 / /tmp rw shared:1 - tmpfs tmpfs rw\n"
        "29 27 0:31 /@ /home rw - btrfs /dev/sdb rw\n"
    )
    return tmp_path


def add_disk(root: Path, device: str, number: str) -> None:
    folder = root / "sys/devices" / device
    folder.mkdir(parents=True)
    (folder / "dev").write_text(f"{number}\n")
    links = root / "sys/dev/block"
    links.mkdir(parents=True, exist_ok=True)
    (links / number).symlink_to(f"../../devices/{device}")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ((254, 0), Disk("vda", "254:0")),
        ((8, 1), Disk("sda", "8:0")),
        ((253, 0), Disk("dm-0", "253:0")),
        ((104, 0), Disk("cciss/c0d0", "104:0")),
    ],
    ids=["whole", "partition", "device mapper", "name with a slash"],
)
def test_whole_disk_is_found(root, number, expected):
    assert disk_of_number(os.makedev(*number), Path("/x"), root) == expected


def test_its_file_is_in_dev():
    assert Disk("cciss/c0d0", "104:0").path == "/dev/cciss/c0d0"


@pytest.mark.parametrize(("minor", "kind"), [(25, "tmpfs"), (31, "btrfs"), (77, "unknown")])
def test_nameless_file_systems_are_refused_by_their_type(root, minor, kind):
    with pytest.raises(ConfigError, match=f"/x: no single disk is under it .{kind}"):
        disk_of_number(os.makedev(0, minor), Path("/x"), root)


def test_disk_that_sysfs_does_not_know_is_refused(root):
    with pytest.raises(ConfigError, match="no single disk"):
        disk_of_number(os.makedev(9, 9), Path("/x"), root)


def test_a_path_is_asked_for_its_file_system(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        disk_of(tmp_path, root=tmp_path)
