from chorus_kernels.moe.reference import ExpertMatrices, experts_forward, route, swiglu

__all__ = ["ExpertMatrices", "experts_forward", "route", "swiglu"]
