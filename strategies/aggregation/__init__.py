"""From the clients' models to one, and what a client may stand for."""
