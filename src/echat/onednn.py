"""What torch's oneDNN can do on this CPU."""

import torch


def packs(dtype: torch.dtype) -> bool:
    """Whether it keeps weights of this type in the order in which the CPU reads them; bf16 needs AVX512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
