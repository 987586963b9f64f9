"""The network: what computes. transformer.py first, then block.py, attention.py, gated_delta.py; ../README.md
has the formulas.
"""
