"""Measure the accuracy and the calibration of a model."""
