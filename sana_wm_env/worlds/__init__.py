"""Bundled worlds, a folder each: configuration, weights, and a card that says how they were made and
measured.
"""
