"""Golden files: what small runs came to, to see that a change that must not change results does not."""
