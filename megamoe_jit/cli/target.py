"""Which target a command works for when the user names none."""

from __future__ import annotations

from megamoe_jit.errors import UnsupportedError

DEFAULT_ARCH = "sm_90a"
EMULATED_ARCH = "sm_100f"  # of commands that run kernels, on a machine that has no GPU for them


def device_arch() -> str | None:
    """Return the target of this machine's current GPU, or None where there is no GPU that has one."""
    import torch

    from megamoe_jit.runtime.device import device_info

    if not torch.cuda.is_available():
        return None
    try:
        return device_info().arch.name
    except UnsupportedError:
        return None


def target_arch(given: str | None = None, *, without_gpu: str = DEFAULT_ARCH) -> str:
    """Return the target `given` (checked), else that of this machine's GPU, else `without_gpu`."""
    from megamoe_jit.arch import get_arch

    return get_arch(given).name if given else device_arch() or without_gpu
