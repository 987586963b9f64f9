import pytest
import torch
from tiny_networks import tiny_network

from sana_wm_env.model.network.transformer import Transformer


@pytest.fixture
def network() -> Transformer:
    return tiny_network()


@pytest.fixture
def one_thread():
    """For networks so small that threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
