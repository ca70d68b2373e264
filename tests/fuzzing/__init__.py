"""Inputs from outside, spoilt in every way that comes to mind, and what reads them."""
