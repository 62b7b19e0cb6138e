"""What makes two runs the same run: a hash of everything that decides the numbers.

The caller collects that: system and options, model, weights, workload, dtype, devices, links,
dilation, backend, host fingerprint, dependency versions, a digest of the source that runs.
"""

import hashlib
import json
import re
from collections.abc import Mapping

_NAME = re.compile(r"(?P<base>.+-[0-9a-f]{16})(?:-(?P<attempt>\d{1,9}))?")


def make_run_id(system: str, decisive: Mapping[str, object]) -> str:
    """`SYSTEM-` and 16 hexadecimal digits that change with any value in `decisive`."""
    return f"{system}-{digest_of(decisive)[:16]}"


def digest_of(values: Mapping[str, object]) -> str:
    """SHA-256 over plain values; the order of their names does not matter."""
    canonical = json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def split_run_id(run_id: str) -> tuple[str, int] | None:
    """(`base`, attempt) of a folder's name: `x-<hash>` is attempt 1, `x-<hash>-2` attempt 2."""
    match = _NAME.fullmatch(run_id)
    if match is None:
        return None
    return match["base"], int(match["attempt"] or 1)
