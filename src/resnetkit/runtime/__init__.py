"""Devices, threads, random numbers, signals and processes."""
