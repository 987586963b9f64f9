"""Agents for the environments of this package: scripts, planners, policies, and what they are worth.

`agent.py` has the protocol, `choose.py` the agents by name, `evaluate.py` plays them. README.md in this folder says how to use them.
"""
