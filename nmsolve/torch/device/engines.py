"""The engines by name. They import what they run on, so they are loaded on first use."""

from __future__ import annotations

from nmsolve.torch.device.problem import Engine


def engine_named(name: str) -> Engine:
    """Return the engine "torch" or "triton"."""
    # By name, so that types are checked: each module is an `Engine`.
    if name == "triton":
        from nmsolve.torch.device import triton_engine

        return triton_engine
    from nmsolve.torch.device import torch_engine

    return torch_engine
