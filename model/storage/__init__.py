"""Files: tensors (weights.py), published layouts (layouts.py), worlds by name or folder (worlds.py),
repositories (hub.py).
"""
