"""Which faults of a link there are."""

import math

import pytest

from testbed.links.linkfault import AS_SPECIFIED, check_fault
from tpi.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("cut", 0.0),
        ("cut", 1),
        ("delay", 0.5),
        ("drop", 0.0),
        ("drop", 1.0),
        ("drop", AS_SPECIFIED),
        ("duplicate", 0.25),
    ],
)
def test_faults_that_exist(kind, value):
    check_fault(kind, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("cut", 0.5),
        ("cut", -1.0),
        ("delay", -1.0),
        ("delay", 1e9),
        ("drop", 1.5),
        ("drop", -0.5),
        ("duplicate", -1.0),
        ("duplicate", math.nan),
        ("delay", math.inf),
        ("reorder", 1.0),
    ],
)
def test_others_are_refused(kind, value):
    with pytest.raises(ConfigError, match=kind):
        check_fault(kind, value)
