"""Groups of scored connections, as rules see them."""

import torch
from hypothesis import strategies as st
from torch import nn, tensor

from synaptree.core.layer import layers_of
from synaptree.core.rule import Group, Part


def part(name, score, mask=None, **more):
    score = tensor(score)
    mask = torch.ones_like(score, dtype=torch.bool) if mask is None else tensor(mask).bool()
    signals = {"keep": score, "contribution": score, **{key: tensor(value) for key, value in more.items()}}
    return Part(name, mask, signals)


def group(score, mask=None, bias=None, name="fc", **more):
    """Return the group of a linear layer with these scores, and with a bias if it has scores."""
    model = nn.Module()
    model.add_module(name, nn.Linear(len(score[0]), len(score)))
    (layer,) = layers_of(model)
    return Group(layer, part(layer.weight, score, mask, **more), None if bias is None else part(layer.bias, bias))


def kept(rule, *groups, step=0):
    """Return the indices each mask keeps, by layer."""
    masks = rule(groups, step)
    return {name.removesuffix(".weight"): mask.flatten().nonzero().flatten().tolist() for name, mask in masks.items()}


# scores with many ties, on rows of one to five connections
rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=width, max_size=width), min_size=1, max_size=4
    )
)
masks_of = lambda score: st.lists(  # noqa: E731
    st.lists(st.booleans(), min_size=len(score[0]), max_size=len(score[0])), min_size=len(score), max_size=len(score)
)
masked = rows.flatmap(lambda score: st.tuples(st.just(score), masks_of(score)))
