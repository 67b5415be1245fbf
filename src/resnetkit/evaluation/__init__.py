"""Measure how often a model is right."""
