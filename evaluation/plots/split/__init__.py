"""Pictures of split training."""
