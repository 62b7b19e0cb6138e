"""Which commit is the base, and that its worktree leaves nothing behind; with real repositories."""

import os
import subprocess
import sys

import pytest

from harness.regression.base import NoBaselineError, checked_out, describe_head, find_base
from tpi.errors import ConfigError, ResourceError


def git(repo, *args):
    env = {
        **os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_GLOBAL": os.devnull,
    }  # fmt: skip
    done = subprocess.run(
        ["git", "-C", str(repo), *args], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(repo, text):
    (repo / "file").write_text(text)
    git(repo, "add", "file")
    git(repo, "commit", "-q", "-m", text)
    return git(repo, "rev-parse", "HEAD")


@pytest.fixture
def upstream(tmp_path):
    repo = tmp_path / "upstream"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    commit(repo, "one")
    return repo


@pytest.fixture
def clone(tmp_path, upstream):
    """A clone of two commits."""
    commit(upstream, "two")
    git(tmp_path, "clone", "-q", str(upstream), "clone")
    return tmp_path / "clone"


def trees(repo):
    return git(repo, "worktree", "list", "--porcelain").count("worktree ")


def test_branch_is_compared_with_where_it_left_main(clone):
    fork = git(clone, "rev-parse", "HEAD")
    git(clone, "checkout", "-q", "-b", "work")
    commit(clone, "three")
    commit(clone, "four")
    base = find_base(clone)
    assert base.commit == fork
    assert "origin/main" in base.how


def test_main_is_compared_with_the_commit_before(clone):
    assert find_base(clone).commit == git(clone, "rev-parse", "HEAD~1")


def test_main_with_commits_that_are_not_pushed_is_compared_with_origins(clone):
    pushed = git(clone, "rev-parse", "HEAD")
    commit(clone, "three")
    commit(clone, "four")
    assert find_base(clone).commit == pushed


def test_without_a_remote_it_is_the_commit_before(upstream):
    first = git(upstream, "rev-parse", "HEAD")
    commit(upstream, "two")
    assert find_base(upstream).commit == first


def test_a_branch_without_a_remote_is_compared_with_where_it_left_its_main(upstream):
    first = git(upstream, "rev-parse", "HEAD")
    git(upstream, "checkout", "-q", "-b", "work")
    for name in ("two", "three", "four"):
        commit(upstream, name)
    base = find_base(upstream)
    assert (base.commit, base.how) == (first, "where this branch left main")


def test_named_commit_wins(clone):
    assert find_base(clone, "HEAD").commit == git(clone, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["nonsense", "--all", ""])
def test_commit_that_is_not_there_is_refused(clone, name):
    with pytest.raises(ConfigError, match="has no commit"):
        find_base(clone, name)


def test_first_commit_has_no_baseline(upstream):
    with pytest.raises(NoBaselineError, match="is the first commit"):
        find_base(upstream)


def test_clone_of_depth_1_has_no_baseline(tmp_path, clone):
    git(tmp_path, "clone", "-q", "--depth", "1", clone.as_uri(), "shallow")
    with pytest.raises(NoBaselineError, match="--deepen"):
        find_base(tmp_path / "shallow")


def test_folder_that_is_no_checkout_has_no_baseline(tmp_path):
    with pytest.raises(NoBaselineError, match="no git checkout"):
        find_base(tmp_path)


def test_missing_git_is_no_baseline(clone, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoBaselineError, match="not installed"):
        find_base(clone)


def test_head_says_whether_files_differ_from_it(clone):
    assert describe_head(clone) == git(clone, "rev-parse", "HEAD")[:12]
    (clone / "file").write_text("changed")
    assert describe_head(clone).endswith("with uncommitted changes")


def test_worktree_has_the_commits_files_and_leaves(clone):
    (clone / "file").write_text("changed")
    with checked_out(clone, git(clone, "rev-parse", "HEAD~1")) as tree:
        assert (tree / "file").read_text() == "one"
        assert (clone / "file").read_text() == "changed"
        assert trees(clone) == 2
        (tree / "file").write_text("compiled")  # what is written there leaves with it
        (tree / "more").write_text("new")
    assert not tree.parent.exists()
    assert trees(clone) == 1
    assert git(clone, "status", "--porcelain") == "M file"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_worktree_leaves_on_an_error(clone, error):
    with pytest.raises(error), checked_out(clone, "HEAD") as tree:
        raise error
    assert not tree.parent.exists()
    assert trees(clone) == 1


def test_hooks_of_the_repository_do_not_run(clone, tmp_path):
    hook = clone / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    with checked_out(clone, "HEAD"):
        assert not (tmp_path / "ran").exists()


def test_worktree_that_git_cannot_make_is_one_line_and_leaves_nothing(clone):
    with pytest.raises(ResourceError, match="git worktree add"), checked_out(clone, "f" * 40):
        pass
    assert trees(clone) == 1


def test_variables_of_a_hook_do_not_mislead(clone, upstream, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(upstream / ".git"))
    before = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "HEAD~1"], capture_output=True, text=True,
        check=True, env={k: v for k, v in os.environ.items() if k != "GIT_DIR"},
    ).stdout.strip()  # fmt: skip
    assert find_base(clone).commit == before


def test_signal_takes_the_worktree_down(clone, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from harness.regression.base import checked_out\n"
        "from harness.run.signals import GracefulShutdown\n"
        "with GracefulShutdown():\n"
        "    try:\n"
        f"        with checked_out(pathlib.Path({str(clone)!r}), 'HEAD') as tree:\n"
        "            sys.stdout.write(str(tree) + '\\n'); sys.stdout.flush()\n"
        "            sys.stdin.read()\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        tree = process.stdout.readline().strip()
        assert os.path.isdir(tree)  # noqa: PTH112
        process.terminate()
        assert process.wait(10) == 130
    assert not os.path.exists(tree)  # noqa: PTH110
    assert trees(clone) == 1
