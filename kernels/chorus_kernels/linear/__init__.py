from chorus_kernels.linear.reference import embedding, linear

__all__ = ["embedding", "linear"]
