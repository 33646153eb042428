"""Pictures of expert caching."""
