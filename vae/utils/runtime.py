"""Settings of the process and of torch, for the start of a command."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vae.utils.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h
_TRAINING_THREADS = 4

_KEPT_BYTES, _LARGEST_HEAP_BLOCK = 2**30, 2**25


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import torch and the project faster, by leaving out what looks for unreachable objects.

    The garbage collector would go through the million objects of the imported modules several
    times during the imports, and again at the end of the process. It ignores the objects that
    exist when the context ends. If torch has been imported before, as in the second job of a
    worker, nothing is changed, because these objects would include the garbage of earlier jobs.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def configure_process() -> None:
    """Configure this process for training.

    Call this function before anything imports torch. The function imports torch itself.

    Three settings make training on the CPU faster:

    - Denormal numbers (below 1e-38 in float32) are set to zero. Adam's moments decay to denormal
      numbers, with which CPUs compute so slowly that training takes a third longer or more.
    - Freed memory stays in the process. Otherwise glibc returns the memory to the system after
      each step, and the system hands it out again page by page in the next step.
    - OpenMP threads that wait for each other soon release their core. GNU OpenMP checks 300,000
      times in a loop by default, which halves the speed if other processes need the core. With
      10,000 times, nothing is lost on idle cores:
      https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html

    On CUDA, float32 is computed in float32. By default, convolutions would round their inputs to
    TF32, which has only ten mantissa bits, and the reported bounds would change.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import numpy
    import torch

    # numpy before 2.4 warns if finfo is first called after denormals are set to zero.
    for dtype in (numpy.float32, numpy.float64):
        numpy.finfo(dtype)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)


def limit_threads() -> None:
    """Let torch use at most four threads, unless OMP_NUM_THREADS is set.

    The matrix products of a training step are so small that more threads mostly wait for each
    other. See "Threads" in docs/performance.md.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), _TRAINING_THREADS))


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count`, if it is lower.

    Raises:
        UserError: The system does not allow so many.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UserError(f"{count} files must be open at once, and `ulimit -Hn` allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
