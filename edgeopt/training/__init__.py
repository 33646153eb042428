"""The torch side: models with named cut points, and what runs or trains them. Needs the extra ``train``."""
