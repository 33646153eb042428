"""Where clients run: here, as a batch, on Flower."""
