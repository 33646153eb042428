"""Pictures of client selection."""
