"""The plan made of tensors: layers, building, initialisation."""
