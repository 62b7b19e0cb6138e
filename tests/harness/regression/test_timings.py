"""Rounds and orders, with servers that only note who was asked."""

from collections import Counter
from contextlib import nullcontext
from itertools import permutations

import pytest

from harness.regression import probe, timings
from harness.regression.timings import Amount, _time_start, measure_timings
from harness.regression.tree import ProgramError, Tree
from harness.regression.verdict import Timing


class FakeServer:
    def __init__(self, side, asked):
        self._side, self._asked = side, asked

    def time(self, name):
        self._asked.append((name, self._side))
        return float(len(self._asked))


def test_every_probe_sees_every_order_equally_often():
    asked: list[tuple[str, str]] = []
    servers = {side: FakeServer(side, asked) for side in ("base", "head", "again")}
    found = {name: Timing([], [], []) for name in probe.PROBES}
    for start in range(2):
        _time_start(servers, found, 6, start)  # type: ignore[arg-type]  # a fake
    for name, timing in found.items():
        turns = 6 * probe.TURNS.get(name, probe.USUAL_TURNS)
        assert [len(group) for group in timing.head] == [turns, turns]
        sides = [side for asked_name, side in asked if asked_name == name]
        orders = Counter(tuple(sides[i : i + 3]) for i in range(0, len(sides), 3))
        assert orders == dict.fromkeys(permutations(("base", "head", "again")), turns // 3)


def test_a_probe_that_the_base_loses_is_an_error_and_no_missing_baseline(tmp_path, monkeypatch):
    said = iter([{}, {"token": "address in use"}])
    monkeypatch.setattr(timings, "Server", lambda tree, folder: nullcontext())
    monkeypatch.setattr(timings, "_without_baseline", lambda servers: next(said))
    monkeypatch.setattr(timings, "_time_start", lambda *_: None)
    tree = Tree("base", tmp_path)
    with pytest.raises(ProgramError, match="base: probe token ran before start 2: address in use"):
        measure_timings(tree, tree, tmp_path, Amount(2, 1), lambda _: None)


def test_times_of_one_round_stand_at_one_place():
    asked: list[tuple[str, str]] = []
    servers = {side: FakeServer(side, asked) for side in ("base", "head", "again")}
    timing = Timing([], [], [])
    _time_start(servers, {"token": timing}, 4, 0)  # type: ignore[arg-type]  # a fake
    for index in range(4):
        stamps = {timing.base[0][index], timing.head[0][index], timing.again[0][index]}
        assert stamps == {3 * index + 1, 3 * index + 2, 3 * index + 3}
