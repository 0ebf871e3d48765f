"""What a process does once, before any work, so that the machine is not in its way."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT, _LARGEST = 2**30, 2**25


def prepare() -> None:
    """Flushes denormals to zero, and keeps freed memory for the next tensor.

    Adam's decayed moments become denormal, and slow it down by a third and more. What glibc gives
    back to the system after each step has to be faulted in again, page by page, at the next one.
    """
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
