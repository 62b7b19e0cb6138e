import os

import pytest

from results.paper.report import main as report
from results.records import trace_file
from tpi.errors import ConfigError
from tpi.files import check_out


def test_a_new_or_a_regular_file_may_be_written(tmp_path):
    check_out(tmp_path / "new" / "file")
    (tmp_path / "old").touch()
    check_out(tmp_path / "old", keep=[tmp_path / "other", tmp_path])


def test_what_a_file_would_take_the_place_of_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("fifo", "link"):
        with pytest.raises(ConfigError, match="is no regular file"):
            check_out(tmp_path / name)
    for path in (tmp_path, tmp_path / "..", tmp_path.__class__("")):
        with pytest.raises(ConfigError, match="folder"):
            check_out(path)
    with pytest.raises(ConfigError, match="is read for it"):
        check_out(tmp_path / "file", keep=[tmp_path / "file"])


@pytest.mark.parametrize("command", [report, trace_file])
def test_commands_refuse_it_in_a_line(command, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    assert command.main([str(tmp_path), "--out", str(tmp_path / "fifo")]) == 2
    assert "is no regular file; expected a new or a regular file" in capsys.readouterr().err
    assert command.main([str(tmp_path), "--out", ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1
