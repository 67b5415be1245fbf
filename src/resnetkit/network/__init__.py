"""Build the PyTorch module of a plan: layers, initialization, inference."""
