"""Predict labels of images, and compute their embeddings."""
