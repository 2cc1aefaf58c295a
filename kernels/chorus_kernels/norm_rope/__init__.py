from chorus_kernels.norm_rope.reference import (
    apply_rope,
    rms_norm,
    rope_tables,
    yarn_concentration,
    yarn_inverse_frequencies,
)

__all__ = ["apply_rope", "rms_norm", "rope_tables", "yarn_concentration", "yarn_inverse_frequencies"]
