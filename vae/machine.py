"""What a process does once, before any work, so that the machine is not in its way."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT, _LARGEST = 2**30, 2**25


def prepare() -> None:
    """Call it before torch is imported, which it does. On the CPU:

    Denormals are flushed to zero: Adam's decayed moments become denormal, and slow it down by a
    third and more. Freed memory is kept for the next tensor: what glibc gives back to the system
    after each step has to be faulted in again, page by page, at the next one. Threads that wait
    for each other soon let other work have their core: GNU's OpenMP has them spin 300,000 times
    first, which beside two busy processes takes half the speed; with 10,000, quiet cores lose
    none. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import numpy
    import torch

    for kind in (numpy.float32, numpy.float64):
        numpy.finfo(kind)  # asked later, numpy before 2.4 would warn that there are no denormals
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
