"""From pictures to a trained, measured network."""
