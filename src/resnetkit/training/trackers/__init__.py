"""Forward the events of a run to TensorBoard, MLflow or Weights & Biases."""
