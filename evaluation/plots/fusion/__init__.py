"""Pictures of modalities that are fused by uncertainty."""
