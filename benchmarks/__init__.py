"""Measurements: scripts that print tables or one JSON line each."""
