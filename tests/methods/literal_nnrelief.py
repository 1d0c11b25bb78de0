"""NNrelief written out unit by unit, from its description alone: slow, obvious, float64, for the nets of the zoo.

It knows two families: chains (LeNets, VGG) and ResNets of basic blocks with option-A shortcuts. All samples go
through the network at once. It shares no line with the library's implementation, which it is there to check.
"""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


def kept(importances: Tensor, alpha: float, rule: str = "paper") -> Tensor:
    """The contributors one unit keeps: the fewest that carry `alpha` of the total."""
    values = importances.tolist()
    n, total = len(values), importances.sum().item()
    if n == 1:  # exempt
        return torch.ones(1, dtype=torch.bool)
    if alpha == 1:
        return importances > 0
    order = sorted(range(n), key=lambda i: -values[i])
    p0, carried = 0, 0.0
    while p0 < n and (p0 == 0 or carried < alpha * total):
        carried += values[order[p0]]
        p0 += 1
    if rule == "released":
        return importances > values[order[min(p0, n - 1)]]
    first = set(order[:p0])
    return torch.tensor([i in first and values[i] > 0 for i in range(n)])


def fc_importances(x: Tensor, weight: Tensor, bias: Tensor | None, unit: int) -> Tensor:
    """mean |w x| of every connection of `unit`, then |b|."""
    signals = (weight[unit] * x).abs().mean(0)
    return signals if bias is None else torch.cat([signals, bias[unit].abs().view(1)])


def conv_importances(x: Tensor, conv: nn.Module, unit: int, aggregate: str) -> Tensor:
    """What each kernel of `unit` contributes, then the bias."""
    inputs = conv.in_channels // conv.groups
    first = unit // (conv.out_channels // conv.groups) * inputs
    one = type(conv)(
        1, 1, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False, padding_mode=conv.padding_mode
    ).double()
    values = []
    for i in range(inputs):
        one.weight.copy_(conv.weight[unit, i].abs()[None, None])
        channel = x[:, first + i : first + i + 1].abs()
        if aggregate == "mean_of_norm":
            values.append(torch.stack([map_.norm() for map_ in one(channel)]).mean())
        else:
            values.append(one(channel.mean(0, keepdim=True)).norm(p=1 if aggregate == "l1" else 2))
    if conv.bias is not None:
        positions = one(x[:1, :1])[0, 0].numel()
        values.append(conv.bias[unit].abs() * (positions if aggregate == "l1" else positions**0.5))
    return torch.stack(values)


def chain_signals(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """What enters each layer, what its units give after their activation; no residual sums."""
    enters, gives, layer = {}, {}, ""
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            enters[name], layer = x, name
        x = module(x)
        if layer and not isinstance(module, nn.MaxPool2d | nn.Flatten | nn.Dropout):
            gives[layer] = x
    return enters, gives, {}


def resnet_signals(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """The same, and for each block what its two branches bring to the sum."""
    enters, gives, sums = {"conv1": x}, {}, {}
    x = gives["conv1"] = net.relu1(net.bn1(net.conv1(x)))
    for name, block in blocks(net):
        enters[f"{name}.conv1"] = x
        y = gives[f"{name}.conv1"] = enters[f"{name}.conv2"] = block.relu1(block.bn1(block.conv1(x)))
        sums[name] = block.bn2(block.conv2(y)), block.shortcut(x)
        x = gives[f"{name}.conv2"] = block.relu2(sum(sums[name]))
    enters["fc"] = x.mean((2, 3))
    gives["fc"] = net.fc(enters["fc"])
    return enters, gives, sums


def blocks(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in net.named_modules() if hasattr(module, "shortcut")]


def all_kept(net: nn.Module) -> Masks:
    """A mask of True for everything that can die."""
    masks = {}
    for name, parameter in net.named_parameters():
        shape = (*parameter.shape[:2], 1, 1) if parameter.dim() == 4 else parameter.shape
        masks[name] = torch.ones(shape, dtype=torch.bool)
    return masks


def kill_unit(net: nn.Module, masks: Masks, layer: str, unit: int, dead_bn: str, *, residual: bool = False) -> None:
    """Take a unit's incoming connections and its bias, and what its batch norm adds."""
    masks[f"{layer}.weight"][unit] = False
    if f"{layer}.bias" in masks:
        masks[f"{layer}.bias"][unit] = False
    bn = dict(net.named_modules()).get(layer.replace("conv", "bn"))
    if not isinstance(bn, nn.BatchNorm2d) or (residual and dead_bn == "released"):
        return
    bn.weight[unit] = bn.bias[unit] = bn.running_mean[unit] = 0
    bn.running_var[unit] = 0 if dead_bn == "released" else 1
    if dead_bn != "released":
        masks[f"{layer.replace('conv', 'bn')}.weight"][unit] = False
        masks[f"{layer.replace('conv', 'bn')}.bias"][unit] = False


def apply(net: nn.Module, masks: Masks) -> None:
    for name, parameter in net.named_parameters():
        parameter.mul_(masks[name])


@torch.no_grad()
def prune_pass(
    net: nn.Module, masks: Masks, x: Tensor, *,
    alpha_conv: float = 0.95, alpha_fc: float = 0.95,
    conv_aggregate: str = "norm_of_mean", keep_rule: str = "paper", dead_bn: str = "zero",
    prune_stem: bool = True, mask_shortcut_in_scoring: bool = True,
    residual_rule: bool = True, backward_sweep: bool = True,
) -> Masks:
    """One pass over `net` (float64, changed in place); returns the new masks."""
    masks = {name: mask.clone() for name, mask in masks.items()}
    resnet = bool(blocks(net))
    frozen = "" if prune_stem else "conv1"

    def signals() -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        scored = deepcopy(net).eval()
        if not mask_shortcut_in_scoring:
            for _, block in blocks(scored):
                block.shortcut.scale.fill_(1)
        return resnet_signals(scored, x) if resnet else chain_signals(scored, x)

    def score(kind: type, alpha: float, enters: dict[str, Tensor], gives: dict[str, Tensor]) -> None:
        for layer, module in list(net.named_modules()):
            if not isinstance(module, kind) or layer == frozen:
                continue
            for unit in range(module.weight.shape[0]):
                if kind is nn.Conv2d:
                    importances = conv_importances(enters[layer], module, unit, conv_aggregate)
                else:
                    importances = fc_importances(enters[layer], module.weight, module.bias, unit)
                keep = kept(importances, alpha, keep_rule)
                inputs = module.weight.shape[1]
                masks[f"{layer}.weight"][unit] &= keep[:inputs].view_as(masks[f"{layer}.weight"][unit])
                if module.bias is not None:
                    masks[f"{layer}.bias"][unit] &= keep[inputs]
                if (gives[layer][:, unit] == 0).all():
                    kill_unit(net, masks, layer, unit, dead_bn)
                    if layer.endswith(".conv2"):
                        masks[f"{layer[:-6]}.shortcut.scale"][unit] = False

    enters, gives, sums = signals()
    score(nn.Conv2d, alpha_conv, enters, gives)
    if residual_rule:
        for block, (branch, shortcut) in sums.items():
            for unit in range(branch.shape[1]):
                a, r = (side[:, unit].abs().mean(0).norm() for side in (branch, shortcut))
                if a < (1 - alpha_conv) * (a + r):
                    kill_unit(net, masks, f"{block}.conv2", unit, dead_bn, residual=True)
                if r < (1 - alpha_conv) * (a + r):
                    masks[f"{block}.shortcut.scale"][unit] = False
    apply(net, masks)

    enters, gives, _ = signals()
    score(nn.Linear, alpha_fc, enters, gives)
    if backward_sweep:
        (sweep_resnet if resnet else sweep_chain)(net, masks, dead_bn, frozen)
    apply(net, masks)
    return masks


def reads(masks: Masks, layer: str, inputs: int) -> list[bool]:
    """Which of `inputs` units the layer still reads; behind a flatten, a unit is several columns."""
    weight = masks[f"{layer}.weight"]
    return weight.flatten(1).any(0).view(inputs, -1).any(1).tolist()


def sweep_chain(net: nn.Module, masks: Masks, dead_bn: str, frozen: str) -> None:
    layers = [name for name, module in net.named_children() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, reader in reversed(list(pairwise(layers))):
        if layer == frozen:
            continue
        for unit, read in enumerate(reads(masks, reader, masks[f"{layer}.weight"].shape[0])):
            if not read:
                kill_unit(net, masks, layer, unit, dead_bn)


def sweep_resnet(net: nn.Module, masks: Masks, dead_bn: str, frozen: str) -> None:
    names = [name for name, _ in blocks(net)]
    for n in reversed(range(len(names))):
        block, width = names[n], masks[f"{names[n]}.conv2.weight"].shape[0]
        for unit, read in enumerate(block_output_read(masks, names, n, width)):
            if not read:
                kill_unit(net, masks, f"{block}.conv2", unit, dead_bn)
                masks[f"{block}.shortcut.scale"][unit] = False
        for unit, read in enumerate(reads(masks, f"{block}.conv2", masks[f"{block}.conv1.weight"].shape[0])):
            if not read:
                kill_unit(net, masks, f"{block}.conv1", unit, dead_bn)
    if not frozen:
        for unit, read in enumerate(block_output_read(masks, names, -1, masks["conv1.weight"].shape[0])):
            if not read:
                kill_unit(net, masks, "conv1", unit, dead_bn)


def block_output_read(masks: Masks, names: list[str], n: int, width: int) -> list[bool]:
    """Which channels of block `n`'s output (-1: the stem's) anyone reads."""
    if n + 1 == len(names):
        return reads(masks, "fc", width)
    conv = reads(masks, f"{names[n + 1]}.conv1", width)
    scale = masks[f"{names[n + 1]}.shortcut.scale"].tolist()
    if len(scale) > width:
        scale = scale[len(scale) // 4 : len(scale) - len(scale) // 4]
    return [a or b for a, b in zip(conv, scale, strict=True)]
