"""Settings of the process and of torch that have to be made before any work starts."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h
_KEPT_BYTES, _LARGEST_HEAP_BLOCK = 2**30, 2**25


def configure_process() -> None:
    """Configure this process for training. Call it before torch is imported, which it does.

    Three settings make training on the CPU faster:

    - Denormal numbers are flushed to zero. Adam's decayed moments become denormal, which slows
      training down by a third or more.
    - Freed memory stays in the process. Otherwise glibc returns it to the system after each step,
      and the next step has to fault it in again page by page.
    - OpenMP threads that wait for each other soon release their core. GNU OpenMP spins 300,000
      times by default, which halves the speed if other processes are busy. 10,000 spins lose
      nothing on idle cores. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html

    On CUDA, float32 is computed in float32. By default, convolutions would round their inputs to
    the ten mantissa bits of TF32, and the reported bounds would be affected too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import numpy
    import torch

    for dtype in (numpy.float32, numpy.float64):
        numpy.finfo(dtype)  # numpy before 2.4 warns if it is asked after denormals are flushed
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
