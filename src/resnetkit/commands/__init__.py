"""The verbs: what each takes (``Options``) and what it does (``run``, which returns the exit code)."""
