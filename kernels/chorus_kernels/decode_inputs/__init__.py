from chorus_kernels.decode_inputs.reference import GatheredInputs, gather

__all__ = ["GatheredInputs", "gather"]
