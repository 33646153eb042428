"""Pictures of comparisons: solvers against each other."""
