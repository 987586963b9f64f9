"""The network and its state; imports torch, numpy and safetensors, never Gymnasium. README.md in this folder has the map and the formulas.

Begin at `world.py` (`WorldModel`: start, step, decode), then `state.py`, `sampler.py`, `transformer.py`, `block.py`, `attention.py`.
"""
