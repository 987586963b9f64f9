import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_networks, the helpers that the tests of this folder share

from tiny_networks import tiny_network

from sana_wm_env.model.transformer import Transformer


@pytest.fixture
def network() -> Transformer:
    return tiny_network()
