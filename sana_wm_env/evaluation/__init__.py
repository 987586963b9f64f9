"""Measurements of an imagined world against exact rooms. README.md in this folder explains them.

Commands: `fidelity.py` frames, `follow.py` camera paths, `video.py` those of any video, `memory.py` views
that were left, `benchmark.py` (with `benchmark_scenes.py`, `benchmark_report.py`) a minute each,
`precision.py` the cost of few bits, `refining.py` what the second stage does. `episodes.py` draws rooms and
paths. Figures: `metrics.py` of pictures, `poses.py` of paths, `tracking.py` paths from frames, `revisit.py`
of places seen twice. Output: `report.py`, `../contact_sheet.py`; `paper_results.py` has the paper's table.
"""
