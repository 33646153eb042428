"""Split learning: the exchange at a cut, which layers are where, the server's side."""
