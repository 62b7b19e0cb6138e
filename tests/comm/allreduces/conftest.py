import pytest

from tests.comm.allreduces.toy import installed


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    with installed(tmp_path_factory.mktemp("toy")):
        yield
