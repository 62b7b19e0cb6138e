"""docs/extending.md followed to the letter: its packages, installed beside this repository."""

import re
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_PATH = re.compile(r"`(\w+/[\w/]+\.(?:toml|py))`")


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def files_of(text):
    """The files that a section has the reader write; each is named right before its block."""
    found = {}
    for block in _BLOCK.finditer(text):
        before = text[: block.start()].rpartition("```")[2]
        if block[1] != "sh":
            found[_PATH.findall(before)[0]] = block[2]
    return found


def commands_of(text):
    blocks = [block[2] for block in _BLOCK.finditer(text) if block[1] == "sh"]
    return [line for block in blocks for line in block.splitlines()]


SECTIONS = ("An allreduce", "A system")
COMMANDS = [line for title in SECTIONS for line in commands_of(section(title))]


class Reader:
    """A new user: a Python of their own with all that this project needs, and the page."""

    def __init__(self, folder):
        self.folder = folder
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        self.site = next((folder / "venv").glob("lib/python*/site-packages"))
        (self.site / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        for title in SECTIONS:
            for path, text in files_of(section(title)).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)

    def install(self, name):
        """What pip does with a folder that needs no build, without its network."""
        package = self.folder / name
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        info = self.site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(points))
        (self.site / f"{name}.pth").write_text(f"{package}\n")

    def run(self, line, *more):
        """Type a line of the page."""
        program, *words = re.sub(r"'(.*?)'", r"\1", line).split()
        if program.endswith("pip"):
            return self.install(words[-1])
        start = {"tpi": ["-m", "tpi.cli"], "python": []}[program]
        return subprocess.run(
            [self.python, *start, *words, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def measure(self, line):
        """A line of the page that measures, with what keeps it short and apart."""
        words = ["repeats=1", "workload.new_tokens=3", f"results_dir={self.folder}/runs"]
        if "testbed=sim" not in line:
            words += [f"weights.dir={self.folder}/weights", "allow_concurrent=true"]
        done = self.run(line, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("reader"))
    for line in COMMANDS:
        if "pip install" in line:
            reader.run(line)
    return reader


def lines_with(*words):
    return [line for line in COMMANDS if all(word in line for word in words)]


def rows_of(text):
    """The words of each system's row of the table."""
    table = re.search(r"^system +status .*\n((?:.+\n)+)", text, re.MULTILINE)
    assert table is not None, text
    return {line.split()[0]: line.split() for line in table[1].splitlines()}


def test_the_page_has_all_that_is_needed():
    assert len(lines_with("pip install")) == 2
    assert len(lines_with("testbed=sim")) == 3
    assert {path for title in SECTIONS for path in files_of(section(title))} == {
        "chain/pyproject.toml", "chain/chain_allreduce.py", "eager/pyproject.toml",
        "eager/eager_system/program.py", "eager/eager_system/system.py",
        "eager/eager_system/schedule.py",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_allreduce_is_planned(reader):
    (line,) = lines_with("tpi plan")
    done = reader.run(line)
    assert done.returncode == 0, done.stderr
    assert "chain" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("line", lines_with("testbed=sim"))
def test_both_are_simulated(reader, line):
    rows = rows_of(reader.measure(line))
    assert {row[1] for name, row in rows.items() if name in ("tpi", "eager")} == {"ok"}
    assert ("eager" in rows) == ("eager" in line or "systems=all" in line)


MEASURED = [line for line in lines_with("python run.py") if "testbed=sim" not in line]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("line", MEASURED)
def test_both_run_on_processes_with_the_right_tokens(reader, line):
    rows = rows_of(reader.measure(line))
    assert rows
    assert {(row[1], row[-1]) for row in rows.values()} == {("ok", "equal")}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_code_of_both_is_part_of_a_run(reader):
    (chain,) = lines_with("testbed=sim", "allreduce=chain")
    eager = next(line for line in lines_with("testbed=sim", "eager]"))

    def runs():
        found = reader.measure(chain) + reader.measure(eager)
        return {line for line in found.splitlines() if line.startswith("record: ")}

    before = runs()
    assert runs() == before
    for change in ("# A comment.", "NEW = 1"):
        for path in ("chain/chain_allreduce.py", "eager/eager_system/schedule.py"):
            with (reader.folder / path).open("a") as file:
                file.write(f"\n{change}\n")
        if change.startswith("#"):
            assert runs() == before
    changed = [line.rpartition("/")[2].rpartition("-")[0] for line in runs() - before]
    assert sorted(changed) == ["eager", "tpi"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_help_lists_the_system_and_its_options(reader):
    done = reader.run("python run.py --help")
    assert "eager" in done.stdout
    assert "eager.cache" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_wrong_option_is_one_line(reader):
    done = reader.run("python run.py systems=[eager] systems.eager.cahce=1")
    assert done.returncode == 2
    assert "unknown option 'systems.eager.cahce'; did you mean systems.eager.cache?" in done.stderr
