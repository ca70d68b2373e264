"""The run directory of a run that is over, and what is read from it."""
