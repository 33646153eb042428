import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tiny tensors on a busy machine: threads would wait for each other for most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
