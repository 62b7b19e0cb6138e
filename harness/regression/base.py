"""The commit that this tree is compared with, and its files in a temporary worktree.

The user's checkout, index and branches are not touched.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tpi.errors import EXIT_OK, ConfigError, ResourceError, TpiError

_MAINS = ("origin/main", "main")  # a clone without a remote has only its own


class NoBaselineError(TpiError):
    """There is nothing to compare with: a notice, not a failure."""

    exit_status = EXIT_OK
    code = "no_baseline"


class Base(NamedTuple):
    """The commit to compare with, and how it was chosen."""

    commit: str
    how: str


def find_base(repo: Path, wanted: str | None = None) -> Base:
    """The commit `wanted`, or where this branch left main, or on main itself the one before.

    Raises:
        ConfigError: There is no commit `wanted`.
        NoBaselineError: None was asked for, and there is none.
    """
    if wanted is not None:
        if commit := _commit(repo, wanted):
            return Base(commit, f"--base {wanted}")
        raise ConfigError(f"--base: {repo} has no commit {wanted!r}; fetch it, or name another")
    head = _commit(repo, "HEAD")
    if not head:
        raise NoBaselineError(f"{repo} is no git checkout with a commit")
    for main in _MAINS:
        fork = _output(repo, "merge-base", "HEAD", main)
        if fork and fork != head:
            return Base(fork, f"where this branch left {main}")
    if before := _commit(repo, "HEAD~1"):
        return Base(before, "the commit before HEAD")
    if _output(repo, "rev-parse", "--is-shallow-repository") == "true":
        raise NoBaselineError(
            f"this clone ends at {head[:12]}: fetch one commit more (git fetch --deepen 1)"
        )
    raise NoBaselineError(f"{head[:12]} is the first commit")


def describe_head(repo: Path) -> str:
    """The commit of this tree, and whether files differ from it."""
    commit = (_commit(repo, "HEAD") or "no commit")[:12]
    is_changed = _output(repo, "status", "--porcelain")
    return f"{commit} with uncommitted changes" if is_changed else commit


@contextmanager
def checked_out(repo: Path, commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary worktree; raises ResourceError if git cannot make it."""
    with tempfile.TemporaryDirectory(prefix="tpi-base-") as scratch:
        tree = Path(scratch).resolve() / "base"  # git remembers resolved paths
        try:
            made = _git(repo, "worktree", "add", "--detach", str(tree), commit)
            if made.returncode:
                why = (made.stderr.strip() or "it said nothing").splitlines()[-1]
                raise ResourceError(f"git worktree add {commit[:12]}: {why}")
            yield tree
        finally:
            # Only ours, by its path; if git has not made it, there is nothing to remove.
            _git(repo, "worktree", "remove", "--force", "--force", str(tree))


def _commit(repo: Path, name: str) -> str:
    return _output(repo, "rev-parse", "--verify", "--end-of-options", name + "^{commit}")


def _output(repo: Path, *args: str) -> str:
    """What git prints; empty if it fails."""
    done = _git(repo, *args)
    return "" if done.returncode else done.stdout.strip()


def _git(repo: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # A hook that calls us exports GIT_DIR and similar variables of its own command.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    argv = ["git", "-C", str(repo), "-c", f"core.hooksPath={os.devnull}", *args]
    try:
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise NoBaselineError("git is not installed") from exc
