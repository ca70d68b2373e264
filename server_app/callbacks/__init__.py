"""What watches a run and writes of it: one concern a file."""
