"""Learned policies: `ppo.py` acts by one, `train_ppo.py` trains it, `view.py` is its view.

`redness.py` is a task that works in any world, `transfer.py` compares policies in imagination and in the
truth.
"""
