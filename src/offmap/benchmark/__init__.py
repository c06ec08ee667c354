"""Beside the way, not on it: data sets, protocols, metrics, tables."""
