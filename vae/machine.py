"""The machine: what a process does before any work so that it is not in the way, or asks of it."""

import ctypes
import os
import sys
import time

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

    On CUDA, float32 is float32: torch would have convolutions round their inputs to TF32's ten
    bits, in the bounds as well.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import numpy
    import torch

    for kind in (numpy.float32, numpy.float64):
        numpy.finfo(kind)  # asked later, numpy before 2.4 would warn that there are no denormals
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)


def bf16_slowdown() -> float:
    """How many times as long as in float32 a layer of a network takes in bf16 on this CPU, about.

    Less than 1 where the processor has instructions for it (AVX-512 BF16, AMX, Arm's BF16),
    several where they are made up for. Measured, in a tenth of a second.
    """
    import torch
    from torch.nn.functional import linear

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(100, 784, dtype=dtype), torch.ones(512, 784, dtype=dtype)
        times = []
        for _ in range(10):
            began = time.perf_counter()
            linear(x, weight)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)
