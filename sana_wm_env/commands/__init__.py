"""Commands of `sana-wm` beside training, evaluation and agents, one file each; `table.py` has all of them."""
