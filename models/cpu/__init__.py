"""Quantized weights on a Linux CPU: onnxruntime multiplies int8 activations by 4- and 8-bit weights.

MLX widens every weight to float32 there. Imports onnxruntime only when a model is built.
"""
