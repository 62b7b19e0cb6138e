from results.paper.cells.validation import pairs_of
from results.paper.render.validation_table import markdown, summary
from tests.results.claim_books import GIB, book, cell

FOUR, RING = "validation 4_devices tpi", "validation 4_devices,_ring tpi-resident"


def both(where, metric, measured, simulated):
    place = f"{where} {metric}"
    return (
        cell(place, measured, dilation=8.0, run_id=f"measured {where}"),
        cell(place, simulated, "simulated", run_id=f"simulated {where}"),
    )


def checked_book():
    return book(
        *both(FOUR, "ttft_s", 2.0, 2.1),
        *both(FOUR, "token_latency_s", 1.0, 0.9),
        *both(FOUR, "peak_memory_bytes", GIB, 1.25 * GIB),
        *both(RING, "token_latency_s", 0.5, 0.51),
        *both("table1 llama2-3b on", "token_latency_s", 1.0, 3.0),
    )


def test_a_configuration_is_a_line_with_what_was_measured_first():
    lines = markdown(checked_book()).splitlines()
    cells = [[each.strip() for each in line.split("|")[1:-1]] for line in lines if "|" in line]
    first, latency = ("2 s ᵈ⁸", "*~2.1 s*", "+5.0 %"), ("1 s ᵈ⁸", "*~900 ms*", "-10.0 %")
    memory, ring = ("1 GiB ᵈ⁸", "*~1.25 GiB*", "+25.0 %"), ("500 ms ᵈ⁸", "*~510 ms*", "+2.0 %")
    assert cells[2:] == [
        ["4 devices", "TPI-LLM", *first, *latency, *memory],
        ["4 devices, ring", "tpi-resident", "", "", "", *ring, "", "", ""],
    ]
    assert "2 configurations, 2 with both numbers. Errors," in lines


def test_a_side_without_a_number_says_why_and_has_no_error():
    made = book(
        cell(f"{FOUR} ttft_s", 2.0, dilation=8.0), cell(f"{FOUR} ttft_s", "oom", "simulated")
    )
    text = markdown(made)
    assert "| 4 devices     | TPI-LLM | 2 s ᵈ⁸ | *~oom*    |       |" in text
    assert "1 configuration, 0 with both numbers." in text


def test_the_summary_is_of_the_checks_alone():
    text = markdown(checked_book())
    assert (
        "- token latency: median 6.0 %, worst -10.0 % (4 devices, TPI-LLM), 2 of 2 within 25 %"
        in text
    )
    assert "- TTFT: median 5.0 %, worst +5.0 % (4 devices, TPI-LLM), 1 of 1 within 25 %" in text


def test_a_summary_names_the_worst_of_what_it_is_given():
    pairs = [pair for pair in pairs_of(checked_book()) if not pair.is_check]
    assert list(summary(pairs)) == [
        "token latency: median 200.0 %, worst +200.0 % (llama2-3b, on), 0 of 1 within 25 %"
    ]


def test_without_any_check_the_table_says_so():
    assert markdown(book()).endswith("Nothing was measured or simulated to check it.\n")
