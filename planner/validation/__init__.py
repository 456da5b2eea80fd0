"""Measurements that ship with the project, and how far from them the predictions are."""
