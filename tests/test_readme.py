"""The README's first example runs as it stands."""

import re
from pathlib import Path


def test_first_example():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), names)
    assert names["obs"].shape[0] == 24 and names["info"]["c2w"].shape == (24, 4, 4)
