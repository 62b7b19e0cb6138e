"""`conf/paper` is what it should be, and what is wrong in such a file is one line that names it."""

from collections import Counter, defaultdict

import pytest

from harness.config.compose import CONF_DIR, compose
from harness.paper.plan import PAPER_DIR, exhibit_words, exhibits_of, read_plan
from results.paper.cell import ALL_EXHIBITS, EXHIBITS, SCALES, VALIDATION, Place
from tpi.errors import ConfigError
from tpi.model_config import preset_names

MODELS = {
    *("llama2-3b", "llama2-7b", "llama2-13b", "llama2-70b"),
    *("llama3.1-8b", "llama3.1-70b", "yi-34b"),
}
OFF_ON = {f"{switch}/{count}" for switch in ("off", "on") for count in (2, 4, 6, 8)}
LAPTOP = {"transformers", "accelerate", "accelerate-2024", "transformers-window", "tpi"}
COMPUTED = {"table4", "table5", "table7"}


def places(plan, exhibit):
    return {(e.row, e.column) for e in plan.entries if e.exhibit == exhibit}


def is_simulated(entry):
    return "testbed.backend=sim" in entry.overrides


@pytest.fixture(scope="module", params=SCALES)
def plan(request):
    return read_plan(request.param)


def test_every_exhibit_that_needs_runs_has_some(plan):
    found = {e.exhibit for e in plan.entries} | {s.exhibit for s in plan.studies}
    assert found - {VALIDATION} == {*EXHIBITS} - COMPUTED
    assert [s.name for s in plan.studies] == ["allreduce"]


def test_rows_and_columns_are_those_of_the_paper(plan):
    assert places(plan, "table1") == {(m, c) for m in MODELS for c in ("off", "on")}
    for table in ("table2", "table6"):
        assert places(plan, table) == {(m, c) for m in MODELS for c in OFF_ON}
    for table in ("table3", "table8"):
        laptops = MODELS - {"llama2-70b", "llama3.1-70b"}
        assert places(plan, table) == {(m, c) for m in laptops for c in LAPTOP}
    for figure in ("figure1a", "figure1b"):
        assert places(plan, figure) == {("pipeline", "run"), ("tpi", "run")}
    series = ("tensor-parallel", "tpi")
    assert places(plan, "figure1c") == {(n, c) for n in ("1", "2", "4") for c in series}
    assert places(plan, "figure4") == {("window", "run")}
    for figure, rows in (("5a", "4 6 8"), ("5b", "4 6 8"), ("5c", "300 500 1000")):
        assert places(plan, f"figure{figure}") == {(row, "tpi") for row in rows.split()}
    four = ("standalone", "mp", "galaxy", "tpi")
    llama2 = [model for model in MODELS if model.startswith("llama2")]
    assert places(plan, "figure6") == {(m, c) for m in llama2 for c in four}


def test_every_entry_is_a_place(plan):
    for entry in plan.entries:
        Place(entry.exhibit, entry.row, entry.column, "token_latency_s")


def test_what_is_simulated_has_the_shape_that_its_row_names(plan):
    simulated = [e for e in plan.entries if is_simulated(e)]
    assert simulated
    for entry in simulated:
        if entry.row in preset_names():
            assert f"model={entry.row}" in entry.overrides


def test_smoke_measures_a_handful_of_tiny_ones():
    measured = {(e.system, e.overrides) for e in read_plan("smoke").entries if not is_simulated(e)}
    assert 10 <= len(measured) <= 16
    assert all("model=tiny" in overrides for _, overrides in measured)
    docker = [system for system, overrides in measured if "testbed=docker" in overrides]
    assert sorted(docker) == ["tpi", "transformers"]


def test_full_measures_every_place():
    plan = read_plan("full")
    seen = Counter((e.exhibit, e.row, e.column, is_simulated(e)) for e in plan.entries)
    assert set(seen.values()) == {1}
    for exhibit, row, column, simulated in seen:
        assert (exhibit, row, column, not simulated) in seen


def check_composes(systems, overrides):
    composed = compose([*overrides, f"systems=[{','.join(systems)}]"])
    assert list(composed.config.systems) == systems
    assert composed.config.repeats in (1, 2, 3, 5)


@pytest.mark.parametrize("part", range(3))
def test_a_sample_composes(plan, part):
    # Of each exhibit, kind of option and system one; the slow test has all.
    chosen = {(e.exhibit, e.overrides[-1].partition("=")[0], e.system): e for e in plan.entries}
    for entry in list(chosen.values())[part::24]:
        check_composes([entry.system], entry.overrides)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_everything_composes():
    systems = defaultdict(set)
    for scale in SCALES:
        for entry in read_plan(scale).entries:
            systems[entry.overrides].add(entry.system)
    for overrides, names in systems.items():
        check_composes(sorted(names), overrides)


def test_words_of_the_command_line_are_exhibits():
    assert exhibits_of("table1") == ("table1",)
    assert exhibits_of("figure1") == ("figure1a", "figure1b", "figure1c")
    assert exhibits_of("figure5b") == ("figure5b",)
    assert {e for word in exhibit_words() for e in exhibits_of(word)} == {*ALL_EXHIBITS}
    with pytest.raises(ConfigError, match=r"unknown 'table9'; did you mean table"):
        exhibits_of("table9")


def test_every_exhibit_has_a_verb_in_the_makefile():
    makefile = (CONF_DIR.parent / "Makefile").read_text()
    verbs = makefile.partition("EXHIBITS :=")[2].partition(".PHONY")[0].replace("\\", "").split()
    assert {e for verb in verbs for e in exhibits_of(verb)} == {*ALL_EXHIBITS}


def test_files_are_called_after_verbs():
    for path in PAPER_DIR.glob("*.yaml"):
        exhibits_of(path.stem)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ConfigError, match="scale: got 'huge', expected one of smoke, small, full"):
        read_plan("huge")


RUN = 'row: a\n      columns: {tpi: tpi}\n      overrides: ["model=tiny"]'


def write(tmp_path, run, section="smoke", name="table1"):
    (tmp_path / f"{name}.yaml").write_text(f"{section}:\n  runs:\n    - {run}\n")
    return tmp_path


def test_a_product_gives_every_row_and_column(tmp_path):
    run = (
        'for: {model: [a, b], n: [2, 4]}\n      row: "{model}"\n'
        '      columns: {"x/{n}": tpi, "y/{n}": galaxy}\n      overrides: ["devices={n}", z]'
    )
    entries = read_plan("small", write(tmp_path, run, section="simulated")).entries
    assert len(entries) == 8
    assert {(e.row, e.column, e.system, e.overrides) for e in entries} >= {
        ("a", "x/2", "tpi", ("devices=2", "z")),
        ("b", "y/4", "galaxy", ("devices=4", "z")),
    }


def test_a_scale_may_have_several_sections(tmp_path):
    write(tmp_path, RUN, section="small, simulated")
    assert read_plan("smoke", tmp_path).entries == ()
    assert len(read_plan("small", tmp_path).entries) == 1


def test_whatever_is_measured_for_the_validation_is_simulated_too():
    entries = [e for e in read_plan("small").entries if e.exhibit == VALIDATION]
    seen = Counter((e.row, e.column, e.system) for e in entries)
    assert set(seen.values()) == {2}
    assert len(seen) >= 16
    simulated = [e for e in entries if is_simulated(e)]
    assert len(simulated) == len(seen)
    assert all("testbed.calibration=weights/calibration.json" in e.overrides for e in simulated)


def test_a_section_of_another_scale_is_checked_and_left_out(tmp_path):
    write(tmp_path, RUN)
    assert len(read_plan("smoke", tmp_path).entries) == 1
    assert read_plan("small", tmp_path).entries == ()
    write(tmp_path, "rows: a")
    with pytest.raises(ConfigError, match=r"unknown key 'smoke.runs\[0\].rows'"):
        read_plan("small", tmp_path)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            "row: on\n      columns: {tpi: tpi}",
            "smoke.runs[0].row must be a non-empty string, got True; texts",
        ),
        (
            "row: a\n      columns: {on: tpi}",
            "smoke.runs[0].columns.True: the key must be a string, got True",
        ),
        ("row: a\n      columns: {x: tpy}", "columns: x: unknown system 'tpy'; did you mean tpi"),
        ("row: a", "smoke.runs[0].columns is missing"),
        ("row: a\n      columns: {}", "columns: none, expected COLUMN: SYSTEM"),
        ('row: "{m}"\n      columns: {x: tpi}', "'{m}': {m} is not among `for`"),
        (
            "for: {m: [on]}\n      row: a\n      columns: {x: tpi}",
            "smoke.runs[0].for.m[0] must be ",
        ),
        (
            "for: {m: 3}\n      row: a\n      columns: {x: tpi}",
            "smoke.runs[0].for.m must be a list, got 3",
        ),
        ("row: a\n      exhibits: [tabel1]\n      columns: {x: tpi}", "did you mean table1?"),
        ("row: a\n      overides: []\n      columns: {x: tpi}", "did you mean overrides?"),
        (f"{RUN}\n    - {RUN}", "written down twice"),
        (f"{RUN}\n      row: b", "the key 'row' is there twice"),
        ("{", "table1.yaml: "),
    ],
)
def test_mistakes_are_named(tmp_path, run, words):
    with pytest.raises(ConfigError) as error:
        read_plan("smoke", write(tmp_path, run))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_section_of_no_scale_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown section 'smal'; did you mean small"):
        read_plan("smoke", write(tmp_path, RUN, section="smal"))


def test_a_file_of_several_exhibits_must_name_them(tmp_path):
    with pytest.raises(ConfigError, match="exhibits: unknown 'figure1'; did you mean figure1"):
        read_plan("smoke", write(tmp_path, RUN, name="figure1"))


def test_an_unknown_study_is_refused(tmp_path):
    (tmp_path / "figure3.yaml").write_text("smoke:\n  studies: {allredcue: []}\n")
    with pytest.raises(ConfigError, match="did you mean allreduce"):
        read_plan("smoke", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("[--delay]", "--delay"), ("[--rounds=0]", "--rounds: got 0"), ("[--rouns=5]", "--rouns=5")],
)
def test_mistakes_in_the_arguments_of_a_study_are_named(tmp_path, arguments, words):
    path = tmp_path / "figure3.yaml"
    path.write_text(f"smoke:\n  studies: {{allreduce: {arguments}}}\n")
    with pytest.raises(ConfigError) as error:
        read_plan("small", tmp_path)
    assert str(error.value).startswith(f"{path}: smoke: studies: allreduce: ")
    assert words in str(error.value)
