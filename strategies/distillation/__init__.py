"""From several models to one: who teaches, on what, and how."""
