"""Pictures and words to numbers and back: the bundled encoders, the published ones, and which of them a world
has (open.py).
"""
