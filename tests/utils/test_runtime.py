"""The number of threads that training uses."""

import pytest
import torch

from vae.utils.runtime import limit_threads


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
