"""The project's own attention kernels for Metal and CUDA, and the launch functions that check their inputs."""

from __future__ import annotations

from rvllm_local.metal_kernels.add_norm import AddNorm
from rvllm_local.metal_kernels.arguments import NewTokens, Rotation
from rvllm_local.metal_kernels.config import KernelConfig, default_backend
from rvllm_local.metal_kernels.kernels import KernelSet
from rvllm_local.metal_kernels.launch import DispatchCounter
from rvllm_local.metal_kernels.quantized_matmul import QuantizedMatmul

__all__ = [
    "AddNorm",
    "DispatchCounter",
    "KernelConfig",
    "KernelSet",
    "NewTokens",
    "QuantizedMatmul",
    "Rotation",
    "default_backend",
]
