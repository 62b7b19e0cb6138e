"""How fast a core of this host reads memory while all do.

Decode is nothing but reading weights, so a device's share of this host's CPU for it is its own
memory rate over this figure.
"""

import time

_BYTES = 256 << 20  # far beyond any cache
_PASSES = 9


def core_read_gbps() -> float:
    """10^9 bytes per second and core in a float32 matrix-vector product on all cores.

    Devices together keep all cores busy, so that is the rate each of them finds. The best pass
    counts, because other programs can only take from what the host can give.
    """
    import numpy as np

    columns = 4096
    matrix = np.ones((_BYTES // 4 // columns, columns), dtype=np.float32)
    vector = np.ones(columns, dtype=np.float32)
    out = np.empty(matrix.shape[0], dtype=np.float32)
    seconds = []
    for _ in range(_PASSES):
        start_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
        np.dot(matrix, vector, out=out)
        wall_ns, cpu_ns = time.monotonic_ns() - start_ns, time.process_time_ns() - cpu_ns
        # CPU time of all threads: numpy spreads the product over the cores.
        seconds.append(max(wall_ns, cpu_ns) / 1e9)
    return _BYTES / min(seconds) / 1e9
