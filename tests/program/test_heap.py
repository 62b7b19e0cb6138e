import platform

import pytest

from tpi.program.heap import return_freed_tensors


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_setting_is_accepted_by_glibc():
    assert return_freed_tensors()


def test_c_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not return_freed_tensors()
