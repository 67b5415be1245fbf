"""Devices, threads, random numbers, signals and processes: what a program runs on."""
