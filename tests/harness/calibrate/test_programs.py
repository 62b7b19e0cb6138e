"""Costs of a layer and of a step come apart by the number of layers."""

import pytest

from harness.calibrate.programs import CASES, Served, costs_from


def served(step_s, layer_s, rss=300, anon=200):
    steps = {layers: step_s + layers * layer_s for layers in (4, 36)}
    return Served(ready_s=3.0, step_s=steps, rss_bytes=rss, anon_bytes=anon)


def all_served(**changes):
    found = dict(
        zip(
            CASES,
            (served(1e-3, 2e-4), served(1e-3, 6e-4), served(5e-3, 4e-4), served(9e-3, 4.9e-3)),
            strict=True,
        )
    )
    return found | changes


def test_costs_are_those_that_made_the_steps():
    costs = costs_from(all_served())
    assert (costs["start_s"], costs["library_bytes"], costs["library_anon_bytes"]) == (
        3.0,
        300,
        200,
    )
    assert costs["step_s"] == pytest.approx(1e-3)
    assert costs["block_s"] == pytest.approx(1e-4)  # two a layer
    assert costs["sum_s"] == pytest.approx(2e-4)  # likewise, of 4e-4 more with two devices
    assert costs["library_step_s"] == pytest.approx(5e-3)
    assert costs["library_layer_s"] == pytest.approx(4e-4)
    assert costs["hook_s"] == pytest.approx(5e-4)  # nine tensors


def test_what_noise_turns_round_is_no_negative_cost():
    costs = costs_from(dict.fromkeys(CASES, served(1e-3, -2e-5)))
    assert (costs["block_s"], costs["sum_s"], costs["hook_s"]) == (0, 0, 0)
    assert costs["step_s"] > 0
