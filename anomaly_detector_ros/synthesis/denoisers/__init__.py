"""Denoisers: diffusers' U-Nets, published checkpoints, exports to ONNX, compiled."""
