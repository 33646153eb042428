"""Optimisation and scheduling of AI at the wireless edge."""
