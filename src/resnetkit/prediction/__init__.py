"""Label images, and compute their embeddings."""
