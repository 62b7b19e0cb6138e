"""README and docs/: tables are what their records give, links resolve, commands exist."""

import hashlib
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness.config.command_line import CONF_DIR
from harness.config.compose import compose
from harness.lab import VERBS
from harness.paper.allreduce_file import read_points
from results.paper.cell import VALIDATION
from results.paper.cells.load import open_result_set
from results.paper.claims.judge import judge_claims, summary
from results.paper.index import INDEX_FILE
from results.paper.render import markdown as paper_tables
from results.paper.render import validation_table
from results.records.comparison_table import markdown
from results.records.store import RunStore
from tests import study_table

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "published"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
# What the reader of docs/extending.md writes; a test below makes the pages in a copy of conf/.
NEW = ("chain", "eager")  # of packages that docs/extending.md makes; test_extending.py runs them


def blocks(kind):
    """The generated blocks of a kind: what its first line names, and its text."""
    found = re.findall(rf"<!-- {kind}: (.+?) -->\n(.*?)<!-- end -->", ALL, re.DOTALL)
    return [(name, text.strip()) for name, text in found]


def commands(text):
    """The lines of the shell examples, continued ones joined, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            yield from (words,) if words else ()


COMMANDS = [(page, words) for page, text in PAGES.items() for words in commands(text)]
CODE = [(page, code) for page, text in PAGES.items() for code in re.findall(r"`([^`\n]+)`", text)]


def test_readme_is_short_and_has_its_picture():
    assert len(README.splitlines()) <= 150
    assert "](docs/demo.svg)" in README


def test_readme_has_one_table_of_results_and_leads_to_every_page():
    assert re.findall(r"<!-- (\w+): ", README) == ["claims"]
    for page in PAGES.keys() - {"README.md"}:
        assert f"]({page})" in README, page


def test_warning_about_workers_stands():
    assert (
        "Every worker you add can reconstruct your conversation if it holds the public model. "
        "Add only devices you trust as you trust the master." in " ".join(README.split())
    )


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_published_set_is_shown():
    folders = {path.name for path in PUBLISHED.iterdir() if path.is_dir()}
    papers = {name for name in folders if (PUBLISHED / name / INDEX_FILE).is_file()}
    assert {name for name, _ in blocks("records")} == folders - papers
    assert {name.split()[0] for name, _ in blocks("paper")} == papers
    assert {name for name, _ in blocks("study")} == {p.name for p in PUBLISHED.glob("*.json")}


@pytest.mark.parametrize(("name", "text"), blocks("records"), ids=lambda each: each[:20])
def test_table_is_what_its_records_give(name, text):
    records, problems = RunStore(PUBLISHED / name).scan()
    assert not problems
    assert text == markdown(records).strip()


def test_paper_tables_are_what_their_records_give():
    named = [name.split() for name, _ in blocks("paper")]
    books = {name: open_result_set(PUBLISHED / name) for name in {name for name, _ in named}}
    for name, exhibit in named:
        book = books[name]
        assert not book.problems
        if exhibit == VALIDATION:
            drawn = validation_table.markdown(book)
        else:
            drawn = paper_tables.markdown(book, exhibit)
        assert dict(blocks("paper"))[f"{name} {exhibit}"] == drawn.strip(), (name, exhibit)


def test_claims_are_what_their_records_give():
    for name, text in blocks("claims"):
        assert text == summary(judge_claims(open_result_set(PUBLISHED / name))).strip()


@pytest.mark.parametrize(("name", "text"), blocks("study"), ids=lambda each: each[:20])
def test_study_is_what_its_figures_give(name, text):
    assert text == study_table.markdown(read_points(PUBLISHED / name)).strip()


def test_records_of_the_paper_are_those_whose_hashes_are_listed():
    for name in {name.split()[0] for name, _ in blocks("paper")}:
        folder = PUBLISHED / name
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
        there = {path.relative_to(folder).as_posix() for path in folder.glob("*/run.json")}
        assert set(listed) == {INDEX_FILE, *there}
        for path, digest in listed.items():
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest, path


def test_verbs_of_make_and_lab_exist():
    makefile = (ROOT / "Makefile").read_text()
    (exhibits,) = re.findall(r"^EXHIBITS := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    verbs = {
        "make": {*re.findall(r"^([a-z-]+):", makefile, re.MULTILINE), *exhibits.split()},
        "lab": {*VERBS, "--help", "VERB"},
        "tpi": {"split", "generate", "plan", "node"},
    }
    verbs["make"] |= {"VERB"}
    seen = [words for _, words in COMMANDS] + [code.split() for _, code in CODE]
    for words in seen:
        words = words[1:] if words[0] == "sudo" else words
        program = Path(words[0]).name
        if program in verbs and len(words) > 1:
            assert words[1] in verbs[program], words


def test_files_of_the_repository_that_pages_name_exist():
    tops = "conf|harness|testbed|baselines|results|tests|tpi|docs"
    written = (
        *("results/runs", "results/paper-runs", "tpi/presets/NAME", "baselines/NAME"),
        "conf/systems/NAME",
    )
    for page, code in CODE:
        if re.fullmatch(rf"({tops})/[\w./-]*", code) and not code.startswith(written):
            assert (ROOT / code).exists(), (page, code)


def test_no_page_names_a_module_as_a_command():
    assert "python -m" not in ALL.replace(".venv/bin/python -m pytest", "")


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """A copy of `conf/` with the pages that docs/extending.md has its reader write."""
    folder = tmp_path_factory.mktemp("extended") / "conf"
    shutil.copytree(CONF_DIR, folder)
    block = r"```yaml\n((?:# @package \S+\n)?# conf/(\S+)\n.*?)```"
    for text, path in re.findall(block, ALL, re.DOTALL):
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


def runs():
    """The arguments of every `run.py` on a page, in examples and within lines."""
    inline = [(page, shlex.split(code)) for page, code in CODE if "run.py " in code]
    for page, words in (*COMMANDS, *inline):
        if "run.py" in words:
            yield page, words[words.index("run.py") + 1 :]


@pytest.mark.parametrize(("page", "args"), [*runs()], ids=str)
def test_command_lines_of_run_py_compose(page, args, conf, tmp_path):
    if "--help" in args or any(name in arg for name in NEW for arg in args):
        return
    args = [arg.replace("=CHECKPOINT", f"={tmp_path}") for arg in args]
    args = [arg for arg in args if not arg.startswith("testbed.calibration=")]
    overrides = [arg for arg in args if arg not in ("-m", "--multirun")]
    jobs = [overrides]
    if overrides != args:
        parsed = OverridesParser.create().parse_overrides(overrides)
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    for job in jobs:
        assert compose(job, conf)


def test_extending_shows_a_model_that_can_be_planned(tmp_path):
    from tpi.model_config import load_config

    (shape,) = re.findall(r"```json\n(.*?)```", PAGES["docs/extending.md"], re.DOTALL)
    (tmp_path / "config.json").write_text(shape)
    assert load_config(tmp_path).num_layers == 24
