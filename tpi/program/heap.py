"""How the C library gives freed memory back: large blocks at once."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
# Tensors of decoding are smaller (and come from the heap, fast), those of a long prompt larger.
_LARGE_BYTES = 1 << 20


def return_freed_tensors() -> bool:
    """Have allocations of 1 MiB and more mapped singly, so that freeing one returns its memory.

    By default glibc raises that threshold to the size of whatever was freed, up to 32 MiB, and
    such tensors then fragment the heap: with 512 tokens in a step, peaks were 20 to 40 MiB higher
    and could not be predicted (llama2-7b and -70b shapes on 8 devices: 324 and 369 MiB beside the
    weights; with this 290 and 333, within 2 % of `tpi.planner.memory`).

    Returns whether the C library has such a setting (glibc does).
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except (OSError, AttributeError):
        return False
