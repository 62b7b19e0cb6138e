import json

import pytest

from testbed.host.rates import probe_host
from tpi.errors import ConfigError


def test_probe_host_measures_once_and_finds_its_rates_again(tmp_path):
    folder = tmp_path / "weights"
    host = probe_host(folder)
    assert host.read_bps > 1e6
    assert host.write_bps > 1e6
    assert host.available_memory > 0
    assert host.cores >= 1
    kept = json.loads((folder / "disk.json").read_text())
    (folder / "disk.json").write_text(json.dumps({**kept, "read_bps": 123_000_000}))
    assert probe_host(folder).read_bps == 123_000_000
    assert [p.name for p in folder.iterdir()] == ["disk.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": 0, "read_bps": 1, "write_bps": 1}'])
def test_probe_host_measures_again_where_the_file_is_of_no_use(tmp_path, text):
    (tmp_path / "disk.json").write_text(text)
    assert probe_host(tmp_path).read_bps > 1e6


def test_probe_host_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"weights\.dir"):
        probe_host(tmp_path / "file" / "weights")
