"""The client: phase L (local training), local evaluation, and the client's signature."""
