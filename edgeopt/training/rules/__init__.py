"""Pure functions that algorithms share: averages, local training, states of optimisers."""
