"""The device image holds what is installed here, and is built anew only when that changes."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
from importlib import metadata

import docker
import pytest
import requests

from testbed.base import DeviceError
from testbed.image import build, recipe
from testbed.image import main as command
from testbed.image.recipe import closure, image_tag, modules, normal, recipe_digest, requirements

INSTALLED = {
    "torch": ("2.0", ["numpy", "Sym_Py"]),
    "numpy": ("1.0", []),
    "sym-py": ("3.0", ["numpy"]),
    "extra": ("9", []),
}
NONE = frozenset[str]()


def look_up(name, extras):
    """Numpy with the extra `fast` needs the package `extra` too."""
    if name not in INSTALLED:
        return None
    version, needs = INSTALLED[name]
    return version, [(each, NONE) for each in (*needs, *(["extra"] if "fast" in extras else []))]


def test_closure_has_everything_that_is_needed_once_and_in_order():
    assert closure(["torch"], look_up) == ("numpy==1.0", "sym-py==3.0", "torch==2.0")
    assert closure(["numpy", "extra"], look_up, ["extra"]) == ("extra==9", "numpy==1.0")


def test_what_an_extra_needs_is_needed_even_where_the_plain_package_was_met_first():
    def asks(name, extras):
        if name == "top":
            return "1", [("numpy", NONE), ("numpy", frozenset(["fast"]))]
        return look_up(name, extras)

    assert closure(["top"], asks) == ("extra==9", "numpy==1.0", "top==1")


def test_what_is_missing_is_skipped_only_where_it_is_optional():
    assert closure(["numpy", "gone"], look_up, optional=["gone"]) == ("numpy==1.0",)
    with pytest.raises(DeviceError, match="package gone is not installed here; run `make setup`"):
        closure(["gone"], look_up)


def test_modules_are_those_of_roots_that_are_there():
    assert modules(["torch==1", "sympy==2"]) == ["torch"]
    assert modules(["llama-cpp-python==1", "gguf==2"]) == ["llama_cpp", "gguf"]


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
    monkeypatch.setattr(recipe, "_BUILDER", "other")
    found.add(recipe_digest(["a==1"]))
    monkeypatch.setattr(platform, "machine", lambda: "other")
    found.add(recipe_digest(["a==1"]))
    assert len(found | {before}) == 7
    assert image_tag().startswith("tpi-lab-device:")


class FakeClient:
    """Refuses what it is told to, and records what was removed."""

    def __init__(self, error=None, images=(), pull=()):
        self._error, self._images, self._pull = error, list(images), pull
        self.removed: list[str] = []

    def inspect_image(self, tag):
        if self._error is not None:
            raise self._error

    def images(self, name):
        return [each for each in self._images if any(name in tag for tag in each["RepoTags"])]

    def pull(self, tag, stream, decode):
        if isinstance(self._pull, Exception):
            raise self._pull
        return iter(self._pull)

    def remove_image(self, tag):
        if self._error is not None:
            raise self._error
        self.removed.append(tag)

    def prune_images(self, filters):
        assert filters["dangling"]
        assert filters["label"] == "org.tpi-lab.image=device"
        return {"SpaceReclaimed": 0}


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


@pytest.mark.parametrize(
    ("python", "user", "debootstrap", "words"),
    [
        ("2.7", 0, "/x", "no Debian release has Python 2.7"),
        ("3.11", 1000, "/x", "needs root: sudo make image"),
        ("3.11", 0, None, "apt-get install debootstrap"),
    ],
)
def test_what_bootstrapping_lacks_is_named(python, user, debootstrap, words):
    assert words in str(build.bootstrap_problem(python, user, debootstrap))
    assert build.bootstrap_problem("3.11", 0, "/usr/sbin/debootstrap") is None


def test_no_registry_and_no_means_to_bootstrap_names_both(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/sbin/debootstrap")
    said: list[str] = []
    client = FakeClient(pull=docker.errors.APIError("no such\nhost"))
    with pytest.raises(DeviceError, match=r"-slim cannot be pulled, and debootstrap.* needs root"):
        build._base(client, tmp_path, said.append)
    assert "it cannot be pulled (no such host)" in said[-1]
    client = FakeClient(pull=[{"status": "x"}, {"error": "layer broken"}])
    with pytest.raises(DeviceError, match="cannot be pulled"):
        build._base(client, tmp_path, said.append)
    assert "(layer broken)" in said[-1]


def test_a_base_that_can_be_pulled_is_pulled(tmp_path):
    client = FakeClient(pull=[{"status": "done"}])
    assert build._base(client, tmp_path, lambda text: None).startswith("python:3.")


def test_a_base_that_is_there_is_used(tmp_path):
    official = f"python:{recipe.python_version()}-slim"
    there = FakeClient(images=[{"RepoTags": [official]}])
    assert build._base(there, tmp_path, lambda text: None) == official
    own = FakeClient(images=[{"RepoTags": [recipe.base_tag()]}])
    assert build._base(own, tmp_path, lambda text: None) == recipe.base_tag()


OLD = ["tpi-lab-base:0", "tpi-lab-device:0"]
IMAGES = [
    {"RepoTags": [image_tag(), OLD[1]]},
    {"RepoTags": [recipe.base_tag()]},
    {"RepoTags": [OLD[0]]},
]


def test_old_tags_are_those_of_other_recipes():
    assert build.old_tags(FakeClient(images=IMAGES)) == OLD


@pytest.mark.parametrize("error", [None, docker.errors.APIError("in use\nby x")])
def test_pruning_removes_old_tags_alone_and_says_what_stays(monkeypatch, error):
    client = FakeClient(error, IMAGES)
    monkeypatch.setattr(build, "_connected", lambda: contextlib.nullcontext(client))
    said: list[str] = []
    build.prune(said.append)
    assert client.removed == ([] if error else OLD)
    assert said[:2] == [f"{tag} {'stays: in use by x' if error else 'removed'}" for tag in OLD]


def test_a_build_that_fails_says_what_was_printed_last():
    printed = [{"stream": "Step 1"}, {"stream": "cannot import\n"}, {"stream": "\n"}]
    assert build.build_problem(iter(printed)) is None
    failed = [*printed, {"error": "returned\na non-zero code: 1"}, {"stream": "after"}]
    assert build.build_problem(iter(failed)) == "returned a non-zero code: 1: cannot import"


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [(DeviceError("image: no daemon"), 15, "no daemon"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_command_ends_in_one_line(monkeypatch, capsys, raised, status, words):
    def fails(say):
        say("working")
        raise raised

    monkeypatch.setattr(command, "build", fails)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert command.main([]) == status
    said = capsys.readouterr()
    assert said.out == "working\n"
    assert said.err.count("\n") == 1
    assert words in said.err


def test_command_prunes_only_when_asked(monkeypatch):
    called: list[str] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(command, "build", lambda say: called.append("build"))
    monkeypatch.setattr(command, "prune", lambda say: called.append("prune"))
    assert command.main([]) == command.main(["--prune"]) == 0
    assert called == ["build", "prune"]


VERSIONS = """
import json, os, sys
from importlib import metadata
import accelerate, torch, transformers
there = {d.metadata["Name"] for d in metadata.distributions(path=["/opt/packages"])}
names = json.loads(sys.argv[1])
print(json.dumps({
    "versions": {n: metadata.version(n) for n in names}, "uid": os.getuid(), "sum":
    float(torch.ones(3) @ torch.ones(3)), "python": list(sys.version_info[:2]),
    "number": len(there), "cached": torch.__cached__, "is_cached": os.path.exists(torch.__cached__),
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
    assert said["number"] == len(names)
    assert said["cached"].startswith("/opt/packages/torch/__pycache__/")
    assert said["is_cached"]


@pytest.mark.docker
@pytest.mark.timeout(60)
def test_what_is_built_is_not_built_again():
    said: list[str] = []
    assert build.build(said.append) == image_tag()
    assert said == [f"{image_tag()} is there, nothing to do"]


FAKES = {
    "apt-get": """if [ "$1" = indextargets ]; then cat "$LISTS"; fi""",
    "apt-config": """echo "proxy='http://proxy:1'" """,
    "debootstrap": """echo "$http_proxy $*" > "$SAID"
        for root in "$@"; do [ ! -d "$root" ] || touch "$root/there"; done; exit "$STATUS" """,
}
DEBIAN = """Vendor|Debian|http://vendor.example/debian/
Debian|Debian-Security|http://mirror.example/debian-security/
Debian|Debian|http://mirror.example/debian/
"""


def bootstrap(folder, lists, status=0):
    """Run bootstrap.sh with fakes of Debian's tools; gives it and what debootstrap was told."""
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "lists").write_text(lists)
    done = subprocess.run(
        [str(recipe.FOLDER / "bootstrap.sh"), "bookworm", str(folder / "base.tar")],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "LISTS": str(folder / "lists"),
             "SAID": str(folder / "said"), "STATUS": str(status)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, (folder / "said").read_text().split()


def test_bootstrap_takes_the_hosts_debian_mirror_and_proxy(tmp_path):
    done, said = bootstrap(tmp_path, DEBIAN)
    assert done.returncode == 0, done.stderr
    assert (said[0], said[-1]) == ("http://proxy:1", "http://mirror.example/debian/")
    with tarfile.open(tmp_path / "base.tar") as tar:
        assert "./there" in tar.getnames()
    assert not list(tmp_path.glob("base.??????"))


def test_bootstrap_without_a_debian_mirror_leaves_it_to_debootstrap(tmp_path):
    done, said = bootstrap(tmp_path, "Ubuntu|Ubuntu|http://ubuntu.example/\n")
    assert done.returncode == 0, done.stderr
    assert said[-2] == "bookworm"
    assert said[-1].startswith(f"{tmp_path}/base.")  # the last is the folder, no mirror


def test_the_base_names_no_mirror():
    assert "://" not in (recipe.FOLDER / "bootstrap.sh").read_text()


def test_bootstrap_that_fails_leaves_nothing(tmp_path):
    done, _ = bootstrap(tmp_path, DEBIAN, status=3)
    assert done.returncode == 3
    assert not list(tmp_path.glob("base.*"))
