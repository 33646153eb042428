"""Pictures: one function per file, `plot_x(data, ax=None) -> Axes`, no pyplot state."""
