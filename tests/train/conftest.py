import sys
from pathlib import Path

# for `ranks`, the helpers of this folder, and `tiny_networks`; processes that tests start inherit the path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model")]
