"""Keep freed memory in the process instead of giving it back to the system after every batch.

Arrays of pixels and maps are as large as what glibc returns at once; getting them back anew costs a page fault for every
4 KiB, a fifth of the time of a run.
"""

import ctypes

KEEP = 256 << 20
"""Bytes of freed memory that stay in the process."""
LARGEST = 32 << 20
"""Largest block that is taken from them; glibc allows no more."""

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST), "MALLOC_TRIM_THRESHOLD_": str(KEEP), "MALLOC_ARENA_MAX": "2"}
"""The same for a process that is started."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Set this for the process; False where the C library is not glibc, and nothing is changed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEEP)) and bool(mallopt(_MMAP_THRESHOLD, LARGEST))
