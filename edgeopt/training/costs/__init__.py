"""What a round costs: virtual time, energy, bytes."""
