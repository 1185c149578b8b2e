"""Kernels in Triton for what PyTorch, cuDNN and Inductor leave slow on a GPU. Each is measured against them.

Nothing here is imported before a backend on CUDA wants it: Triton comes with PyTorch for CUDA on Linux alone.
"""
