"""The start of the process: threads and garbage collection."""

import gc
import sys

import pytest
import torch

from vae.utils.runtime import limit_threads, without_garbage_collection


@pytest.mark.parametrize(
    ("chosen", "threads", "expected"), [(None, 64, 4), (None, 2, 2), ("64", 64, 64)]
)
def test_training_uses_few_threads_unless_the_user_chooses(monkeypatch, chosen, threads, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    used = [threads]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    limit_threads()
    assert used[-1] == expected


def test_garbage_collection_is_off_only_until_torch_is_imported(monkeypatch):
    frozen = gc.get_freeze_count()
    with without_garbage_collection():  # torch has been imported: this is not the first job
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
