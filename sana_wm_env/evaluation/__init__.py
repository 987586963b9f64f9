"""How good an imagined world is, measured against exact rooms. README.md in this folder has how to and results.

Commands: `fidelity.py` frames, `follow.py` camera paths, `memory.py` views that were left, `benchmark.py` (with `benchmark_scenes.py`,
`benchmark_report.py`) a minute each. `episodes.py` draws rooms and paths.
What they measure with: `metrics.py` pictures, `poses.py` errors of paths, `tracking.py` paths from frames, `revisit.py` places seen twice.
What they write with: `report.py`, `contact_sheet.py`; `published_results.py` has the paper's table.
"""
