"""Explain networks: why each part exists, how it looks, and Grad-CAM. Only `grad_cam` imports torch."""
