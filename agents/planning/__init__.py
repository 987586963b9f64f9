"""Planning over a receding horizon: candidates are imagined, the first chunks of the best one are done.

`planner.py` has the loop, `cem.py` and `mppi.py` draw better candidates, `objectives.py` values them,
`imagination.py` tries them out, `costable.py` the solvers of stable-worldmodel, `report.py` the comparison of
all of them (`sana-wm agents planning`).
"""
