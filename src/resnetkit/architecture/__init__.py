"""A residual network as data: what its author decides, what must hold, and everything that follows. No torch."""
