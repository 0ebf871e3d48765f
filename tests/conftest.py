import pytest
import torch

torch.set_num_threads(1)  # small operations: on busy cores threads mostly wait for each other


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
