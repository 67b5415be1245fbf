"""What computes the logits: PyTorch, OpenVINO, ONNX Runtime."""
