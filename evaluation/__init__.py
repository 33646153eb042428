"""Placeholder."""

if __name__ != "edgeopt.evaluation":  # one module object only: the root folder is edgeopt.evaluation
    raise ImportError("import edgeopt.evaluation, not " + __name__)
