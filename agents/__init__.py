"""Agents for the environments of this package: scripts, planners, policies, and their scores.

In reading order:

agent                     the base class: `reset`, `act`
random_agent, scripted    baselines and scripts
planning/                 planners, and where they try actions out
policy/                   policies trained by PPO
choose                    agents and environments by name, as the command line takes them
run, evaluate             one episode with a video; many with intervals

README.md in this folder says how to use them.
"""
