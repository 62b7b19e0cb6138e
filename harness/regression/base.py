"""The commit that this tree is compared with, and its files in a worktree of their own.

`find_base` names it, `checked_out` lends it. The user's checkout, index and branches are not
touched: the files lie in a temporary folder, whose worktree is removed however the comparison ends.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import EXIT_OK, ConfigError, ResourceError, TpiError

_MAINS = ("origin/main", "main")  # a clone without a remote has its own alone


class NoBaselineError(TpiError):
    """There is nothing to compare with: that is a notice, and no failure."""

    exit_status = EXIT_OK
    code = "no_baseline"


@dataclass(frozen=True, slots=True)
class Base:
    """The commit to compare with, and how it was chosen."""

    commit: str
    how: str


def find_base(repo: Path, wanted: str | None = None) -> Base:
    """The commit `wanted`, or where this branch left main, or on main itself the one before.

    Raises:
        ConfigError: There is no commit `wanted`.
        NoBaselineError: None was asked for, and none is there.
    """
    if wanted is not None:
        commit = _commit(repo, wanted)
        if commit is None:
            raise ConfigError(f"--base: {repo} has no commit {wanted!r}; fetch it, or name another")
        return Base(commit, f"--base {wanted}")
    head = _commit(repo, "HEAD")
    if head is None:
        raise NoBaselineError(f"{repo} is no git checkout with a commit")
    for main in _MAINS:
        fork = _git(repo, "merge-base", "HEAD", main)
        if fork.returncode == 0 and fork.stdout.strip() != head:
            return Base(fork.stdout.strip(), f"where this branch left {main}")
    before = _commit(repo, "HEAD~1")
    if before is None:
        raise NoBaselineError(_why_none_before(repo, head))
    return Base(before, "the commit before HEAD")


def describe_head(repo: Path) -> str:
    """The commit of this tree, and whether files differ from it."""
    changed = _git(repo, "status", "--porcelain").stdout.strip()
    commit = (_commit(repo, "HEAD") or "no commit")[:12]
    return f"{commit} with uncommitted changes" if changed else commit


@contextmanager
def checked_out(repo: Path, commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary worktree, which leaves with the context.

    Raises:
        ResourceError: git cannot make it.
    """
    with tempfile.TemporaryDirectory(prefix="tpi-base-") as scratch:
        # Resolved, since git remembers it so.
        tree = Path(scratch).resolve() / "base"
        try:
            made = _git(repo, "worktree", "add", "--detach", str(tree), commit)
            if made.returncode:
                raise ResourceError(f"git worktree add {commit[:12]}: {_last_line(made.stderr)}")
            yield tree
        finally:
            # Only ours, by its path; where git had not yet made it there is nothing to remove.
            _git(repo, "worktree", "remove", "--force", "--force", str(tree))


def _why_none_before(repo: Path, head: str) -> str:
    shallow = _git(repo, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    if shallow:
        return f"this clone ends at {head[:12]}: fetch one commit more (git fetch --deepen 1)"
    return f"{head[:12]} is the first commit"


def _commit(repo: Path, name: str) -> str | None:
    found = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}")
    return found.stdout.strip() if found.returncode == 0 else None


def _git(repo: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # A hook that calls us exports GIT_DIR and its kin, which are of its own command.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    argv = ["git", "-C", str(repo), "-c", f"core.hooksPath={os.devnull}", *args]
    try:
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise NoBaselineError("git is not installed") from exc


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
