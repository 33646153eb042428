"""Fuzzing of everything that reads a file: valid files, spoilt in many ways. ``make fuzz`` runs it at length."""
