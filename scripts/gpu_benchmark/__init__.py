"""Parts of `scripts/benchmark_gpu.py`. Only PyTorch, NumPy and the native package are needed; anything else is looked
for when a section wants it, and named where it is missing."""
