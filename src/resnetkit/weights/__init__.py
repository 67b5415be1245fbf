"""Weights: what other libraries call them, and how they are stored."""
