"""Memory of a training process: never returned to the system.

The C library would return large blocks after every use, and the kernel would clear them anew for the next: up
to a fifth of a step.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_memory() -> bool:
    """Tells glibc to take all blocks from the heap and to give nothing back to the system. Returns whether
    there was a glibc to tell.

    For the commands that train, not for the library: it is the whole process whose memory stays at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
