"""The device image holds what is installed here, and is built anew only when that changes."""

import json
import os
import subprocess
import sys
from importlib import metadata

import docker
import pytest
import requests

from testbed.base import DeviceError
from testbed.image import build, recipe
from testbed.image.recipe import closure, image_tag, normal, recipe_digest, requirements

INSTALLED = {
    "torch": ("2.0", ["numpy", "Sym_Py"]),
    "numpy": ("1.0", []),
    "sym-py": ("3.0", ["numpy"]),
    "extra": ("9", []),
}


def test_closure_has_everything_that_is_needed_once_and_in_order():
    assert closure(["torch"], INSTALLED.get) == ("numpy==1.0", "sym-py==3.0", "torch==2.0")
    assert closure(["numpy", "extra"], INSTALLED.get, ["extra"]) == ("extra==9", "numpy==1.0")


def test_what_is_missing_is_skipped_only_where_it_is_optional():
    assert closure(["numpy", "gone"], INSTALLED.get, optional=["gone"]) == ("numpy==1.0",)
    with pytest.raises(LookupError, match="package gone is not installed here; run `make setup`"):
        closure(["gone"], INSTALLED.get)


def test_names_have_one_spelling():
    assert normal("Llama_cpp.Python") == "llama-cpp-python"


def test_requirements_are_the_versions_that_are_installed_and_no_tools():
    listed = dict(line.split("==") for line in requirements())
    for name in recipe.ROOTS:
        assert listed[name] == metadata.version(name)
    assert not {"pytest", "mypy", "ruff", "hydra-core", "docker"} & set(listed)


def test_tag_changes_with_packages_recipe_and_python(monkeypatch):
    before = recipe_digest(["a==1"])
    assert recipe_digest(["a==1"]) == before
    found = {recipe_digest(["a==2"]), recipe_digest(["a==1", "b==1"])}
    monkeypatch.setattr(recipe, "_read", lambda name: f"other {name}")
    found.add(recipe_digest(["a==1"]))
    monkeypatch.setattr(recipe, "python_version", lambda: "3.99")
    found.add(recipe_digest(["a==1"]))
    assert len(found | {before}) == 5
    assert image_tag().startswith("tpi-lab-device:")


class FakeClient:
    def __init__(self, error=None, images=()):
        self._error, self._images = error, list(images)

    def inspect_image(self, tag):
        if self._error is not None:
            raise self._error

    def images(self, name):
        return self._images


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (docker.errors.ImageNotFound("no"), "build it with `make image`"),
        (requests.exceptions.ConnectionError("no"), "start it"),
        (docker.errors.APIError("500"), "daemon does not answer"),
    ],
)
def test_a_problem_is_one_line_with_what_mends_it(error, words):
    problem = build.image_problem(FakeClient(error))
    assert problem is not None
    assert words in problem
    assert "\n" not in problem
    assert build.image_problem(FakeClient()) is None


def test_no_daemon_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(DeviceError, match=r"the Docker daemon does not answer"):
        build.build(lambda text: None)


def test_no_registry_and_no_means_to_bootstrap_names_both(monkeypatch):
    monkeypatch.setattr(build, "_pull", lambda tag: False)
    monkeypatch.setattr(build, "SUITES", {})
    with pytest.raises(DeviceError, match=r"cannot be pulled, and no Debian release has Python"):
        build._base(FakeClient(), lambda text: None)
    monkeypatch.setattr(build, "SUITES", {recipe.python_version(): "bookworm"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DeviceError, match="debootstrap needs root: sudo make image"):
        build._base(FakeClient(), lambda text: None)


def test_a_base_that_is_there_is_used():
    there = FakeClient(images=[{"RepoTags": ["python:3"]}])
    assert build._base(there, lambda text: None) == f"python:{recipe.python_version()}-slim"


def test_old_tags_are_those_of_other_recipes():
    client = FakeClient(images=[{"RepoTags": [image_tag(), "tpi-lab-device:0"]}])
    assert build.old_tags(client) == ["tpi-lab-device:0"]


def test_a_tool_that_fails_says_its_last_line():
    with pytest.raises(DeviceError, match="wheels failed with status 3: no such wheel"):
        build._run(["sh", "-c", "echo a; echo no such wheel >&2; exit 3"], "wheels")


VERSIONS = """
import json, os, sys
from importlib import metadata
import accelerate, torch, transformers
names = json.loads(sys.argv[1])
print(json.dumps({
    "versions": {n: metadata.version(n) for n in names}, "uid": os.getuid(), "sum":
    float(torch.ones(3) @ torch.ones(3)), "python": list(sys.version_info[:2]),
}))
"""


@pytest.mark.docker
@pytest.mark.timeout(120)
def test_image_has_exactly_the_hosts_versions_and_needs_no_rights():
    names = [line.partition("==")[0] for line in requirements()]
    done = subprocess.run(
        ["docker", "run", "--rm", "--init", "--read-only", "--cap-drop", "ALL", "--network",
         "none", "--user", "65532:65532", image_tag(), "python3", "-c", VERSIONS,
         json.dumps(names)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["versions"] == dict(line.split("==") for line in requirements())
    assert (said["uid"], said["sum"]) == (65532, 3.0)
    assert said["python"] == list(sys.version_info[:2])


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_what_is_built_is_not_built_again():
    said: list[str] = []
    assert build.build(said.append) == image_tag()
    assert said == [f"{image_tag()} is there, nothing to do"]


def test_bootstrap_leaves_its_folder_only_while_it_runs():
    text = (recipe.FOLDER / "bootstrap.sh").read_text()
    assert "trap 'rm -rf" in text
    subprocess.run(["bash", "-n", str(recipe.FOLDER / "bootstrap.sh")], check=True)
