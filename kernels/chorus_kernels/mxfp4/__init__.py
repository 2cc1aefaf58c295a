from chorus_kernels.mxfp4.reference import BLOCK_SIZE, E2M1_VALUES, SCALE_NAN, pack_mxfp4, scale_values, unpack_mxfp4

__all__ = ["BLOCK_SIZE", "E2M1_VALUES", "SCALE_NAN", "pack_mxfp4", "scale_values", "unpack_mxfp4"]
