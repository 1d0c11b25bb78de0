"""What torch's operations do to channels: the one table from operation to kind."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from synaptree.graph.shortcut import Shortcut

__all__ = ["is_torchs_own", "kind", "overwrites", "reads_values"]

# Functions and tensor methods share their names in torch, hence one list for both.
_NAMES = {
    "add": "add add_",
    "pointwise": """
        abs alpha_dropout alpha_dropout_ bfloat16 celu celu_ clamp clamp_ clamp_max clamp_min clip clone
        detach div div_ double dropout dropout1d dropout2d dropout3d dropout_ elu elu_ eq exp
        feature_alpha_dropout feature_dropout float ge gelu gt half hardshrink hardsigmoid hardsigmoid_
        hardswish hardswish_ hardtanh hardtanh_ le leaky_relu leaky_relu_ log logsigmoid lt maximum
        minimum mish mul mul_ multiply ne neg pow prelu relu relu6 relu_ rrelu rsqrt selu selu_ sigmoid
        sigmoid_ silu softplus softshrink softsign sqrt square sub sub_ tanh tanh_ tanhshrink threshold
        threshold_ to truediv type_as where""",
    "pool": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d interpolate lp_pool1d
        lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool3d upsample""",
    "reduce": "amax amin mean sum",
    "move": """
        cat channel_shuffle chunk concat contiguous expand flatten flip getattr getitem movedim narrow pad permute
        pixel_shuffle pixel_unshuffle repeat reshape roll select split squeeze stack swapaxes t
        tensor_split tile transpose unbind unflatten unsqueeze view""",
}
_PLACES = (torch, F, operator)
_FUNCTIONS = {
    getattr(place, name): op
    for op, names in _NAMES.items() for name in names.split() for place in _PLACES if hasattr(place, name)
} | {getattr: "move"}
_METHODS = {name: op for op, names in _NAMES.items() for name in names.split() if hasattr(Tensor, name)}
_MODULE_NAMES = {
    "pointwise": """
        AlphaDropout CELU Dropout Dropout1d Dropout2d Dropout3d ELU FeatureAlphaDropout GELU Hardshrink
        Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
        Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold""",
    "pool": """
        AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
        AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d LPPool3d MaxPool1d MaxPool2d
        MaxPool3d Upsample UpsamplingBilinear2d UpsamplingNearest2d""",
    "move": """
        ChannelShuffle CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d
        Flatten PixelShuffle PixelUnshuffle ReflectionPad1d ReflectionPad2d ReflectionPad3d
        ReplicationPad1d ReplicationPad2d ReplicationPad3d Unflatten ZeroPad1d ZeroPad2d ZeroPad3d""",
}
_MODULES: dict[type[nn.Module], str] = {Shortcut: "shortcut"} | {
    getattr(nn, name): op for op, names in _MODULE_NAMES.items() for name in names.split()
}
_FAMILIES: dict[type[nn.Module], str] = {nn.Linear: "linear", _ConvNd: "conv", _NormBase: "norm"}
_VALUELESS = {
    "device", "dim", "dtype", "is_cuda", "ndim", "ndimension", "nelement", "new_empty", "new_full",
    "new_ones", "new_zeros", "numel", "shape", "size",
    torch.empty_like, torch.full_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.zeros_like,
}


def is_torchs_own(module: nn.Module) -> bool:
    """Return whether a module's forward is torch's.

    >>> is_torchs_own(nn.Linear(1, 1)), is_torchs_own(Shortcut(1))
    (True, False)
    """
    return str(type(module).forward.__module__).startswith("torch.nn")


def kind(node: fx.Node, module: nn.Module | None) -> str:
    """Return what `node` does to channels: an operation of `Node`, or `reduce`, or `other` if unknown.

    Args:
        node: of a traced model.
        module: the module it calls, if it calls one.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if module is not None:
        families = _FAMILIES.items() if is_torchs_own(module) else ()
        family = next((op for cls, op in families if isinstance(module, cls)), "other")
        return _MODULES.get(type(module), family)
    table: dict[Any, str] = _METHODS if node.op == "call_method" else _FUNCTIONS
    return table.get(node.target, "other")


def reads_values(node: fx.Node) -> bool:
    """Return whether `node` reads the values of a tensor, not just its shape or type."""
    asked = node.args[1] if node.target is getattr else node.target
    return node.op == "call_module" or asked not in _VALUELESS


def overwrites(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether `node` writes its result over its first operand."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return bool(node.kwargs.get("inplace")) or (node.op.startswith("call_") and in_place)
