"""Pictures of model download."""
