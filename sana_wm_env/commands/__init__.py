"""What `sana-wm` runs beside training, evaluation and agents, one file a command. `cli.py` has the table."""
