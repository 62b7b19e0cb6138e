import os

import pytest

from tests.nodes import make_specs
from tests.weights.shard_folders import small_config, write_shard_folder
from tpi.program.host import main, open_spec
from tpi.program.spec import dump_spec

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture
def spec_path(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "0")  # and set back to what it was
    (tmp_path / "split").mkdir()
    write_shard_folder(tmp_path / "split" / "rank-0", small_config(), world_size=1)
    (spec,) = make_specs(tmp_path / "split", new_tokens=1, max_tokens=20)
    dump_spec(spec, tmp_path / "spec.json")
    return tmp_path / "spec.json"


def test_thread_pools_are_told_before_they_are_loaded(spec_path):
    spec = open_spec(spec_path)
    assert [os.environ[name] for name in NAMES] == [str(spec.threads)] * 3


def nothing_to_open(spec):
    raise AssertionError(spec)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["nowhere.json"]])
def test_what_cannot_be_served_is_one_line_and_status_2(arguments, capsys):
    assert main(nothing_to_open, arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
