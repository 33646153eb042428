"""Placeholder."""

if __name__ != "edgeopt.problems":  # one module object only: the root folder is edgeopt.problems
    raise ImportError("import edgeopt.problems, not " + __name__)
