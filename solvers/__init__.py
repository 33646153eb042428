"""Placeholder."""

if __name__ != "edgeopt.solvers":  # one module object only: the root folder is edgeopt.solvers
    raise ImportError("import edgeopt.solvers, not " + __name__)
