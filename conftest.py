"""Keep pytest from importing the root folders a second time: they are edgeopt.problems, edgeopt.solvers, ..."""

collect_ignore = ["problems", "solvers", "evaluation"]
