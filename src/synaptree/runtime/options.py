"""The ways to compute a node: which kernels can, and how they are stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from synaptree.runtime import lookup, moves, outputs, planes, rows, simple
from synaptree.runtime.errors import EngineError
from synaptree.runtime.fastest import Option
from synaptree.runtime.ir import Net, Node
from synaptree.runtime.layout import UNROLLED, Layout, flat, is_flat
from synaptree.runtime.place import LANES, Place, place

__all__ = ["DENSE", "options"]

Floats = npt.NDArray[np.float32]
Steps = Sequence[Any]  # of the extension
DENSE = 0.3  # density from which kernels that ignore zeros are worth a try
UNROLLED_SIZE = 1 << 24  # weights of a convolution written out as a linear layer, at most


@dataclass(frozen=True)
class _Site:
    """A node, where it stands."""

    isa: str
    node: Node
    inputs: list[Place]
    y: Place
    residual: Place | None
    dense: bool  # only kernels that ignore zeros

    @property
    def x(self) -> Place:
        return self.inputs[0]

    @property
    def weight(self) -> Floats:
        assert self.node.weight is not None
        return self.node.weight

    @property
    def bias(self) -> Floats:
        bias = self.node.bias
        return np.zeros(len(self.weight), np.float32) if bias is None else bias

    @property
    def bounds(self) -> dict[str, Any]:
        return {"low": self.node.low, "high": self.node.high}


def options(net: Net, number: int, where: Layout, isa: str, dense: bool = False) -> list[Option]:
    """Return the ways worth timing to compute a node.

    Args:
        net: of the node.
        number: of the node, from 1 on, as its value's.
        where: values lie.
        isa: instruction set.
        dense: only those that ignore zeros.

    Raises:
        EngineError: there is none.
    """
    node = net.nodes[number - 1]
    residual = None if node.residual is None else where.places[node.residual]
    site = _Site(isa, node, [where.places[value] for value in node.inputs], where.places[number], residual, dense)
    if node.op in ("linear", "conv"):
        found = list(_linear(site)) if node.op == "linear" else list(_conv(site)) or list(_last_resort(site))
        if not found and not dense:
            raise EngineError(f"{node.op} {node.name!r}: no kernel computes it")
        return found
    if node.op == "flatten":
        return [Option("copy", lambda _: [moves.copy(isa, site.x, site.y)])] if number in where.copied else []
    return [Option(node.op, lambda _: _SIMPLE[node.op](site))]


def _linear(site: _Site) -> Iterator[Option]:
    x, y, weight = site.x, site.y, site.weight
    if x.lanes > 1:
        sparse = [] if site.dense else rows.variants(site.isa, weight, x, y)
        solid = rows.dense_variants(site.isa, weight, x, y) if site.dense or site.node.density > DENSE else []
        for variant in dict.fromkeys([*sparse, *solid]):
            yield Option(_rows_name(variant), _bound(_rows_linear, site, variant))
        return
    if not site.dense:
        for way in lookup.variants(site.isa, weight):
            yield Option(str(way), _bound(_lookup_linear, site, way))
    if site.dense or site.node.density > DENSE / 3:
        for form in outputs.variants(weight, x, y):
            yield Option(_outputs_name(form), _bound(_outputs_linear, site, form))


def _rows_name(variant: rows.Variant) -> str:
    part = f" in parts of {variant.part}" if variant.part else ""
    return f"rows {variant.rows} x {variant.vectors}, {variant.unroll} at a time{part}"


def _planes_name(variant: planes.Variant) -> str:
    return f"planes {variant.way} {variant.rows} x {variant.columns} in parts of {variant.part}"


def _outputs_name(variant: outputs.Variant) -> str:
    return f"outputs {variant.pixels} x {variant.vectors}"


def _bound(make: Callable[[_Site, Any, int], Steps], site: _Site, variant: Any) -> Callable[[int], Steps]:
    return lambda scratch: make(site, variant, scratch)


def _rows_linear(site: _Site, variant: rows.Variant, _: int) -> Steps:
    return [rows.linear(site.isa, site.weight, site.bias, site.x, site.y, variant=variant, **site.bounds)]


def _lookup_linear(site: _Site, variant: lookup.Variant, _: int) -> Steps:
    return [lookup.linear(site.isa, site.weight, site.bias, site.x, site.y, variant=variant, **site.bounds)]


def _outputs_linear(site: _Site, variant: outputs.Variant, _: int) -> Steps:
    return [outputs.linear(site.isa, site.weight, site.bias, site.x, site.y, variant=variant, **site.bounds)]


def _conv(site: _Site) -> Iterator[Option]:
    own, single = site.node.options, site.x.lanes == 1
    tiny = single and site.y.height * site.y.width <= UNROLLED  # its place has no room for whole registers
    whole_kernels = _plain(site) and not site.dense and _kernel_sparse(site.weight)
    if whole_kernels:
        for form in planes.variants(site.weight, site.x, site.y):
            if not (tiny and form.way == "runs"):
                yield Option(_planes_name(form), _bound(_planes_conv, site, form))
    if single and site.x.height * site.x.width <= UNROLLED:
        if not whole_kernels:  # which are faster as they are
            yield from _unrolled(site)
        return
    if not tiny and (not single or own["stride"] == (1, 1)):
        yield from _rows_options(site)
    elif not tiny and not site.dense:
        yield from _split_options(site)
    if single and own["groups"] == 1 and (site.dense or site.node.density > DENSE / 3 or tiny):
        for kind in outputs.variants(site.weight, site.x, site.y):
            yield Option(_outputs_name(kind), _bound(_outputs_conv, site, kind))
    if tiny and own["groups"] > 1:
        yield from _unrolled(site)


def _plain(site: _Site) -> bool:
    """Return whether it is a convolution of 3 x 3 that keeps the size of the image."""
    own = site.node.options
    usual = own["stride"] == own["padding"] == own["dilation"] == (1, 1) and own["groups"] == 1
    return bool(usual and site.weight.shape[2:] == (3, 3))


def _kernel_sparse(weight: Floats) -> bool:
    """Return whether what is left of the kernels is nearly whole, and some are missing."""
    kept = int(weight.reshape(*weight.shape[:2], -1).any(2).sum())
    return kept < 0.95 * prod(weight.shape[:2]) and int(np.count_nonzero(weight)) > 0.6 * kept * 9


def _rows_options(site: _Site) -> Iterator[Option]:
    own = site.node.options
    layer = site.isa, site.weight, site.x, site.y
    shape = {"stride": own["stride"], "groups": own["groups"]}
    sparse = [] if site.dense else rows.variants(*layer, **shape)
    solid = rows.dense_variants(*layer, **shape) if site.dense or site.node.density > DENSE else []
    for variant in dict.fromkeys([*sparse, *solid]):
        yield Option(_rows_name(variant), _bound(_rows_conv, site, variant))


def _rows_conv(site: _Site, variant: rows.Variant, _: int) -> Steps:
    own = {name: site.node.options[name] for name in ("stride", "padding", "dilation", "groups")} | site.bounds
    more = {"residual": site.residual, "variant": variant, **own}
    return [rows.conv(site.isa, site.weight, site.bias, site.x, site.y, **more)]


def _planes_conv(site: _Site, variant: planes.Variant, _: int) -> Steps:
    more: dict[str, Any] = {"residual": site.residual, "variant": variant, **site.bounds}
    return [planes.conv(site.isa, site.weight, site.bias, site.x, site.y, **more)]


def _outputs_conv(site: _Site, variant: outputs.Variant, _: int) -> Steps:
    own = {name: site.node.options[name] for name in ("stride", "padding", "dilation")} | site.bounds
    more = {"residual": site.residual, "variant": variant, **own}
    return [outputs.conv(site.isa, site.weight, site.bias, site.x, site.y, **more)]


def _last_resort(site: _Site) -> Iterator[Option]:
    """Any convolution of one sample, for those that no kernel is made for: groups as zeros, borders as a copy."""
    if site.dense or site.x.lanes > 1:
        return
    own, x = site.node.options, site.x
    wide = x
    if x.top < own["padding"][0] or x.left < own["padding"][1]:
        wide = place((x.channels, x.height, x.width), 1, *own["padding"])
    whole = replace(site, node=replace(site.node, weight=_without_groups(site)), inputs=[wide])
    for kind in outputs.variants(whole.weight, wide, site.y):
        form = kind if own["groups"] == 1 else replace(kind, vectors=1)  # few outputs read the same inputs

        def make(scratch: int, form: outputs.Variant = form) -> Steps:
            if wide is x:
                return _outputs_conv(whole, form, scratch)
            copied = wide.moved(scratch)
            return [moves.copy(site.isa, x, copied), *_outputs_conv(replace(whole, inputs=[copied]), form, scratch)]

        yield Option(f"last resort, {_outputs_name(form)}", make, 0 if wide is x else wide.bytes)


def _without_groups(site: _Site) -> Floats:
    """Return the weights of all inputs of each output, zeros for those of other groups."""
    groups, (outs, channels, *kernel) = site.node.options["groups"], site.weight.shape
    whole = np.zeros((groups, outs // groups, groups, channels, *kernel), np.float32)
    each = np.arange(groups)
    whole[each, :, each] = site.weight.reshape(groups, outs // groups, channels, *kernel)
    return whole.reshape(outs, groups * channels, *kernel)


def _split_options(site: _Site) -> Iterator[Option]:
    """A strided convolution as one of stride 1 over planes of every stride-th row and column."""
    own = site.node.options
    if own["dilation"] != (1, 1) or own["groups"] != 1:
        return
    apart, weight = _apart(site)
    for variant in rows.variants(site.isa, weight, apart, site.y):
        more = {"residual": site.residual, "variant": variant, **site.bounds}

        def make(scratch: int, more: dict[str, Any] = more) -> Steps:
            split = apart.moved(scratch)
            first = moves.split(site.isa, site.x, split, own["stride"], own["padding"])
            return [first, rows.conv(site.isa, weight, site.bias, split, site.y, **more)]

        yield Option(f"split, {_rows_name(variant)}", make, apart.bytes)


def _apart(site: _Site) -> tuple[Place, Floats]:
    """Return the place of the split input and the kernels that read it.

    Plane (row phase, column phase) holds the padded rows `stride r + row phase`; tap k is tap `k // stride` of phase
    `k % stride`.
    """
    own, (outs, channels, high, wide) = site.node.options, site.weight.shape
    strides = own["stride"]
    taps = [-(-size // stride) for size, stride in zip((high, wide), strides, strict=True)]
    weight = np.zeros((outs, strides[0], strides[1], channels, taps[0], taps[1]), np.float32)
    for row in range(high):
        for column in range(wide):
            phase = row % strides[0], column % strides[1]
            weight[:, phase[0], phase[1], :, row // strides[0], column // strides[1]] = site.weight[:, :, row, column]
    size = site.y.height + taps[0] - 1, site.y.width + taps[1] - 1
    count = channels * strides[0] * strides[1]
    apart = place((count, *size), 1)
    if apart.pitch < site.y.pitch:  # rows as far apart as those of the output: a plane is then one run
        pitch = site.y.pitch
        apart = replace(apart, pitch=pitch, plane=(size[0] * pitch // LANES + 2) * LANES)
    return apart, weight.reshape(outs, count, *taps)


def _unrolled(site: _Site) -> Iterator[Option]:
    """A convolution over a tiny image written out as a linear layer of all its pixels."""
    inputs, features = (p.channels * p.height * p.width for p in (site.x, site.y))
    if inputs * features > UNROLLED_SIZE or not is_flat(site.y):
        return
    weight = _written_out(site)
    bias = np.repeat(site.bias, site.y.height * site.y.width)
    bounds: dict[str, Any] = {"low": -inf, "high": inf} if site.residual else site.bounds
    node = replace(site.node, op="linear", weight=weight, bias=bias, **bounds)
    x = flat(site.x) if is_flat(site.x) else site.x
    inner = replace(site, node=node, inputs=[x], y=flat(site.y), residual=None)
    for option in _linear(inner):
        yield replace(option, kernel=f"unrolled, {option.kernel}", make=_then_sum(site, option.make))


def _then_sum(site: _Site, make: Callable[[int], Steps]) -> Callable[[int], Steps]:
    if site.residual is None:
        return make
    terms = [site.y, site.residual]
    return lambda scratch: [*make(scratch), simple.add(site.isa, terms, site.y, **site.bounds)]


def _written_out(site: _Site) -> Floats:
    """Return the convolution's matrix, (outputs x pixels, inputs x pixels)."""
    own, x, y = site.node.options, site.x, site.y
    groups = own["groups"]
    outs, channels = site.weight.shape[:2]
    whole = np.zeros((outs, y.height, y.width, groups * channels, x.height, x.width), np.float32)
    first = np.arange(outs) // (outs // groups) * channels  # of the input channels of each output
    for row, column, high, wide in np.ndindex(y.height, y.width, *site.weight.shape[2:]):
        at = [
            out * stride + tap * dilation - padding
            for out, tap, stride, dilation, padding in zip(
                (row, column), (high, wide), own["stride"], own["dilation"], own["padding"], strict=True
            )
        ]
        if 0 <= at[0] < x.height and 0 <= at[1] < x.width:
            for channel in range(channels):
                whole[np.arange(outs), row, column, first + channel, at[0], at[1]] = site.weight[:, channel, high, wide]
    return whole.reshape(outs * y.height * y.width, -1)


def _cat(site: _Site) -> Steps:
    first = np.cumsum([0, *(x.channels for x in site.inputs)])
    return [moves.copy(site.isa, x, site.y, int(at)) for x, at in zip(site.inputs, first, strict=False)]


def _max_pool(site: _Site) -> Steps:
    own = site.node.options
    pairs = own["kernel_size"], own["stride"], own["padding"], own["dilation"]
    return [simple.max_pool(site.isa, site.x, site.y, *pairs)]


def _avg_pool(site: _Site) -> Steps:
    own = site.node.options
    pairs = own["kernel_size"], own["stride"], own["padding"]
    return [simple.avg_pool(site.isa, site.x, site.y, *pairs, own["count_include_pad"])]


_SIMPLE: dict[str, Callable[[_Site], Steps]] = {
    "affine": lambda s: [simple.affine(s.isa, s.x, s.y, s.weight, s.bias, **s.bounds)],
    "clamp": lambda s: [simple.clamp(s.isa, s.x, s.y, **s.bounds)],
    "leaky": lambda s: [simple.prelu(s.isa, s.x, s.y, s.weight)],
    "add": lambda s: [simple.add(s.isa, s.inputs, s.y, **s.bounds)],
    "cat": _cat,
    "shortcut": lambda s: [simple.shortcut(s.isa, s.x, s.y, s.weight, s.node.options["stride"])],
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": lambda s: [simple.adaptive_avg_pool(s.isa, s.x, s.y)],
    "adaptive_max_pool": lambda s: [simple.adaptive_max_pool(s.isa, s.x, s.y)],
    "softmax": lambda s: [simple.softmax(s.isa, s.x, s.y)],
    "log_softmax": lambda s: [simple.log_softmax(s.isa, s.x, s.y)],
}
