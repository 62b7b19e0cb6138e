import pytest

from results.paper.cells.substitutions import stand_in, stand_in_name, stand_in_names
from results.records.schema import RunRecord
from tests.results.claim_books import book, cell

WHERE = "figure5a 8 tpi token_latency_s"


def ran_as(model, scale="small"):
    record = RunRecord("tpi-1", "tpi", "ok", config={"model": {"name": model}})
    made = cell(WHERE, 1, run_id="tpi-1", scale=scale)
    return book(made, records={"tpi-1": record}), made


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_another_model_is_named_at_every_scale(scale):
    made, one = ran_as("tinyllama-1.1b", scale)
    assert stand_in_name(made, one) == "tinyllama-1.1b"
    assert stand_in(made, one) == "tinyllama-1.1b ran in the place of llama2-70b"
    assert stand_in_names(made, "figure5a") == ["tinyllama-1.1b"]


def test_the_papers_own_model_stands_for_itself():
    made, one = ran_as("llama2-70b", "smoke")
    assert (stand_in_name(made, one), stand_in(made, one)) == ("", "")
    assert stand_in_names(made, "figure5a") == []


@pytest.mark.parametrize(
    ("detail", "name"),
    [
        ("8 devices; median of 50 rounds", ""),
        ("4 devices; median of 5 rounds", "4 devices"),
        ("8 devices at 300 Mbit/s; median of 5 rounds", ""),
        ("4 devices at 300 Mbit/s; median of 5 rounds", "4 devices"),
        ("8 devices at 1000 Mbit/s; median of 5 rounds", "8 devices at 1000 Mbit/s"),
        ("", "an unknown number of devices"),
    ],
)
def test_a_study_stands_for_the_papers_on_the_same_network(detail, name):
    one = cell("figure3 1 star allreduce_s", 1, source="4 bytes", detail=detail)
    assert stand_in_name(book(one), one) == name
    whole = f"{name} in the place of 8 at 300 Mbit/s"
    assert stand_in(book(one), one) == (whole if name else "")
