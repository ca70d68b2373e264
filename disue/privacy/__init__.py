"""Arithmetic of privacy that clients and server share."""
