"""The source digest changes with what a program computes, and with nothing else."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baselines.registry import all_systems
from harness.run import source_digest
from harness.run.run_key import digest_of_source, reference_digest
from harness.run.source_digest import source_files
from tpi.errors import ConfigError

SYSTEMS = {system.name: system for system in all_systems()}
SIMULATED = {name for name, system in SYSTEMS.items() if system.simulator}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def edit(monkeypatch):
    """Give a file another text, for those who read source through `source_digest`."""
    real = source_digest._text
    unchanged()  # read while it is

    def edit(path, change):
        monkeypatch.setattr(
            source_digest,
            "_text",
            lambda file: change(real(file)) if file == ROOT / path else real(file),
        )

    return edit


def digests():
    """Of everything that has one."""
    return {
        "reference": reference_digest(),
        **{(system, "sim"): digest_of_source(system, "sim") for system in SIMULATED},
        **{
            (system, backend): digest_of_source(system, backend)
            for system in SYSTEMS
            for backend in ("local", "docker")
        },
    }


@functools.cache
def unchanged():
    return digests()


HARMLESS = {
    "comment": lambda text: text.replace("\n\n", "\n# A comment.\n\n") + "\n# Another.\n",
    "docstring": lambda text: '"""Another docstring."""\n' + text.partition('"""\n')[2],
    "blank lines": lambda text: text.replace("\n\n", "\n\n\n\n"),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize(
    "path", ["tpi/engine.py", "testbed/local/local.py", "baselines/tpi/schedule.py"]
)
def test_what_computes_nothing_changes_no_digest(edit, path, change):
    assert change((ROOT / path).read_text()) != (ROOT / path).read_text()
    edit(path, change)
    assert digests() == unchanged()


def test_docstrings_of_classes_and_functions_change_nothing(edit):
    def reword(text):
        reworded = re.sub(r'    """(?=\w)', '    """Another word. ', text)
        assert reworded != text
        return reworded

    edit("tpi/program/spec.py", reword)
    assert digests() == unchanged()


def changed():
    """The digests that are not what they were."""
    return {name for name, digest in digests().items() if digest != unchanged()[name]}


def measured(*systems, backends=("local", "docker")):
    return {(system, backend) for system in systems for backend in backends}


def simulated(*systems):
    return measured(*systems, backends=["sim"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tpi/planner/report.py", measured("tpi", "tpi-resident", "transformers-window")),
        ("tpi/program/spec.py", {"reference", *measured(*SYSTEMS)}),
        ("tpi/weights/shard.py", {*simulated(*SIMULATED), *measured(*SYSTEMS)}),
        ("testbed/local/local.py", measured(*SYSTEMS)),
        ("testbed/docker/testbed.py", measured(*SYSTEMS, backends=["docker"])),
        ("testbed/verify/probe_agent.py", measured(*SYSTEMS, backends=["docker"])),
        (
            "testbed/links/link.py",
            {*simulated(*SIMULATED), *measured(*SYSTEMS, backends=["docker"])},
        ),
        (
            "baselines/tpi/schedule.py",
            simulated("tpi", "tpi-resident", "transformers-window", "galaxy"),
        ),
        ("baselines/accelerate/schedule.py", simulated("accelerate", "accelerate-2024")),
        ("baselines/pipeline/system.py", set()),
        ("testbed/doctor/doctor.py", set()),
        ("baselines/galaxy/ring.py", measured("galaxy")),
        ("baselines/accelerate/offload.py", measured("accelerate", "accelerate-2024")),
        ("baselines/llamacpp/gguf_quantize.py", measured("llamacpp")),
        ("baselines/allreduce_rank.py", set()),
        ("baselines/transformers/reference.py", {"reference"}),
    ],
)
def test_a_constant_changes_the_digests_of_those_that_import_it(edit, path, expected):
    edit(path, lambda text: text + "\nNEW_CONSTANT = 1\n")
    assert changed() == expected


def test_a_constant_in_any_module_of_a_closure_changes_the_digest(edit):
    before = source_digest.source_digest("baselines.galaxy.program", "testbed.docker.testbed")
    files = source_files("baselines.galaxy.program", "testbed.docker.testbed")
    assert len(files) > 100
    for file in files.values():
        constant = "int x = 1;\n" if file.suffix == ".c" else "X = 1\n"
        edit(file.relative_to(ROOT), lambda text, constant=constant: text + constant)
        assert (
            source_digest.source_digest("baselines.galaxy.program", "testbed.docker.testbed")
            != before
        ), file


def test_another_value_of_a_constant_changes_the_digest(edit):
    edit("tpi/comm/wire.py", lambda text: text.replace("VERSION = ", "VERSION = 1 + "))
    assert changed() >= measured("tpi", "galaxy", "pipeline")


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda text: "/* A comment\n * of two lines. */\n\n// Another.\n" + text, True),
        (lambda text: text.replace(";\n", ";  /* why */\n"), True),
        (lambda text: text.replace("\n", "\n\n"), True),
        (lambda text: text + 'char url[] = "http://x";\n', False),
    ],
)
def test_comments_of_c_change_nothing(edit, change, is_same):
    edit("testbed/switch/switch.c", change)
    assert (digest_of_source("tpi", "docker") == unchanged()["tpi", "docker"]) is is_same
    assert digest_of_source("tpi", "local") == unchanged()["tpi", "local"]


def test_text_in_c_that_looks_like_a_comment_is_text():
    one, other = (list(source_digest._c_lines(f'url = "http://{x}"; // x\n')) for x in "ab")
    assert one == ['url = "http://a";']
    assert one != other


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package outside this repository."""
    package = tmp_path / "toy_system"
    (package / "parts").mkdir(parents=True)
    texts = {
        "__init__.py": "",
        "__main__.py": "import toy_system.program",
        "program.py": "import json\nfrom . import parts\nfrom .parts.one import ONE\n",
        "parts/__init__.py": "",
        "parts/one.py": "ONE = 1\ndef f():\n    from tpi.ranks import MASTER_RANK\n",
        "unrelated.py": "raise SystemExit",
    }
    for name, text in texts.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    source_digest._origin.cache_clear()


def test_a_package_from_outside_is_followed_and_not_imported(toy):
    files = source_files("toy_system")
    assert set(files) == {
        "toy_system", "toy_system.__main__", "toy_system.program", "toy_system.parts",
        "toy_system.parts.one", "tpi", "tpi.ranks",
    }  # fmt: skip
    assert "toy_system" not in sys.modules


def test_a_new_module_changes_nothing_until_it_is_imported(toy):
    before = source_digest.source_digest("toy_system")
    (toy / "new.py").write_text("NEW = 1")
    assert source_digest.source_digest("toy_system") == before
    (toy / "parts/one.py").write_text(
        "ONE = 1\ndef f():\n    from tpi.ranks import MASTER_RANK\n\n"
    )
    assert source_digest.source_digest("toy_system") == before
    (toy / "program.py").write_text("from toy_system import new, parts\nimport json\n")
    assert source_digest.source_digest("toy_system") != before


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"source of tpi\.nothing: there is no such module"):
        source_files("tpi.nothing")


def test_nothing_of_a_program_is_imported():
    code = (
        "import sys; from harness.run.source_digest import source_digest;"
        "source_digest('baselines.transformers.program', 'tpi.program.node',"
        " 'testbed.docker.testbed');"
        "print({'torch', 'docker', 'baselines', 'testbed'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
