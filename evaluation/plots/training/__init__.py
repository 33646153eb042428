"""Pictures of training runs and their data."""
