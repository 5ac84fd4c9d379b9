"""What an error of torch says of the machine: memory, GPU, compiler, other processes."""

import torch

from ..core.errors import UserError


def is_lost_peer(error: BaseException) -> bool:
    """Whether a backend's call of several processes failed."""
    words = any(word in str(error) for word in ("gloo", "NCCL", "process group"))
    return words or isinstance(error, torch.distributed.DistError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or this machine had no memory left for a tensor."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def machine_error(error: BaseException) -> UserError | None:
    """What this machine lacks to compute anything at all; None for other errors."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if "no kernel image" in str(error):
        return UserError(
            f"this build of PyTorch cannot compute on this GPU ({text}). Install a build for it, "
            "or set CUDA_VISIBLE_DEVICES= to compute on the CPU."
        )
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    if compiler and type(error).__name__ != "TorchRuntimeError":  # which the network itself raised
        return UserError(
            f"compile: torch.compile does not work here ({text}). Install a C++ compiler (g++), "
            "or set compile=false."
        )
    return None
