"""Commands of `sana-wm` beside training, evaluation and agents, one file each. `cli.py` has the table."""
