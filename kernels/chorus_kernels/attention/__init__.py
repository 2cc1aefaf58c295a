from chorus_kernels.attention.reference import attention, batched_attention, paged_rows, rope_table, visibility

__all__ = ["attention", "batched_attention", "paged_rows", "rope_table", "visibility"]
