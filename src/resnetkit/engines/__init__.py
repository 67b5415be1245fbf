"""Inference engines: PyTorch eager and compiled, OpenVINO, ONNX Runtime."""
