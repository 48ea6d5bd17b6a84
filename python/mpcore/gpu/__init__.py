"""2:4 sparsity on NVIDIA GPUs: what this one can do, the sparse linear layer, fair timing. Imports torch."""
