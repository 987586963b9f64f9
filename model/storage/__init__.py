"""Files: tensors (weights.py), published layouts, worlds by name or folder (checkpoint.py), repositories (hub.py)."""
