"""The commands: each module has a dataclass ``Options`` and a function ``run`` that returns the exit code."""
