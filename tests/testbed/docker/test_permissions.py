"""Whether the containers' user could read the model folders, told before anything is made."""

import os

import pytest

from testbed.docker.container_spec import check_readable, is_readable
from tpi.errors import ConfigError

NOBODY = (65532, 65532)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "rank-0").mkdir(parents=True)
    for path in (folder, folder / "rank-0"):
        path.chmod(0o755)
    file = folder / "rank-0" / "block"
    file.write_text("x")
    file.chmod(0o644)
    return folder


def test_folder_that_all_may_read_is_fine(model):
    check_readable(model, NOBODY)
    check_readable(model / "rank-0" / "block", NOBODY)


@pytest.mark.parametrize(("name", "mode"), [("rank-0/block", 0o600), ("rank-0", 0o700)])
def test_what_only_its_owner_may_read_is_named_with_what_to_do(model, name, mode):
    (model / name).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{name}: mode .*`chmod -R a\+rX {model}`") as caught:
        check_readable(model, NOBODY)
    assert "\n" not in str(caught.value)
    (model / name).chmod(0o755)


def test_its_owner_may_read_it(model):
    (model / "rank-0" / "block").chmod(0o600)
    check_readable(model, (os.getuid(), os.getgid()))


def test_group_counts_before_others(model):
    file = model / "rank-0" / "block"
    file.chmod(0o604)
    info = file.stat()
    assert is_readable(info, (info.st_uid + 1, info.st_gid + 1))
    assert not is_readable(info, (info.st_uid + 1, info.st_gid))


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none: No such file"):
        check_readable(tmp_path / "none", NOBODY)


def test_links_are_left_to_whoever_opens_them(model):
    (model / "away").symlink_to("/nonexistent")
    check_readable(model, NOBODY)
