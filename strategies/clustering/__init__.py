"""Who belongs together: what clients are compared by, and how."""
