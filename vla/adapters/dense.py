"""Linear layers of many rows on a CPU, by oneDNN.

Torch takes another library for float32 there. For a tower's thousand rows oneDNN needs a tenth less
time, adds the bias on the way and applies the activation too, which saves two passes over the
output. Results differ by rounding, about 3e-6. The expert's fifty rows gain nothing and are left.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUTanh


def speed_up(modules: Iterable[nn.Module]) -> int:
    """Has the linear layers in some modules computed by oneDNN, where torch offers it.

    Weights stay where they are, once. With gradients, on another device and in another precision
    the layers compute as ever.

    Args:
        modules: Parts of a model that see many rows at once.

    Returns:
        Layers that were changed.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    changed = 0
    for part in modules:
        for module in list(part.modules()):
            if type(module) is nn.Linear and "forward" not in vars(module):
                _replace(module, partial(_linear, module))
                changed += 1
        for module in list(part.modules()):
            first, activation = (getattr(module, n, None) for n in ("fc1", "activation_fn"))
            if type(first) is nn.Linear and _is_gelu(activation):
                _replace(first, partial(_linear_gelu, first))
                _replace(activation, nn.Identity())
    return changed


def _replace(module: Any, forward: Any) -> None:
    # Not as a submodule, so that the parameters keep their names.
    object.__setattr__(module, "forward", forward)


def _is_gelu(activation: object) -> bool:
    if not isinstance(activation, nn.Module) or "forward" in vars(activation):
        return False
    return isinstance(activation, GELUTanh)


def _takes(module: nn.Linear, x: Tensor) -> bool:
    return (
        torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and x.dtype == module.weight.dtype == torch.float32
    )


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    if not _takes(module, x):
        return functional.linear(x, module.weight, module.bias)
    return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")


def _linear_gelu(module: nn.Linear, x: Tensor) -> Tensor:
    if not _takes(module, x):
        rows = functional.linear(x, module.weight, module.bias)
        return functional.gelu(rows, approximate="tanh")
    return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "gelu", [], "tanh")
