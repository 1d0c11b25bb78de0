import random

import pytest
import torch
import torch.nn.functional as F
from sparse_network import lived_in
from torch import nn

from synaptree.graph.shortcut import Shortcut
from synaptree.surgery.compact import compact

FUNCTIONS = {
    "relu": F.relu, "sigmoid": torch.sigmoid, "pad": lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, :-2],
    "shift": lambda x: x + 0.5, "smooth": lambda x: F.avg_pool2d(x, 3, 1, 1), "half": lambda x: x.chunk(2, 1)[1],
    "size": lambda x: x / x.shape[2], "flip": lambda x: x.flip(3), "sum": lambda x: x + x.sum((2, 3), keepdim=True),
    "add": torch.add, "gate": lambda x, y: x * y.sigmoid(), "cat": lambda x, y: torch.cat([x, y], 1),
}  # fmt: skip


def module(kind, width, rng):
    out, bias = rng.choice([2, 4, 6]), rng.random() < 0.7
    makes = {
        "conv1": lambda: nn.Conv2d(width, out, 1, bias=bias),
        "conv3": lambda: nn.Conv2d(width, out, 3, 1, 1, bias=bias),
        "groups": lambda: nn.Conv2d(width, out, 1, groups=2 - width % 2, bias=bias),
        "deep": lambda: nn.Conv2d(width, 2 * width, 3, 1, 1, groups=width, bias=bias),
        "up": lambda: nn.ConvTranspose2d(width, out, 3, 1, 1, groups=2 - width % 2, bias=bias),
        "norm": lambda: nn.BatchNorm2d(width), "own": lambda: nn.PReLU(width),
        "one": lambda: nn.GroupNorm(1, width), "past": lambda: Shortcut(width, width + rng.choice([0, 3])),
    }  # fmt: skip
    return makes[kind]()


MODULES = ("conv1", "conv1", "conv3", "groups", "deep", "up", "norm", "own", "one", "past")


class Random(nn.Module):
    """Steps of random kinds on random earlier values; all that no step reads goes to the output."""

    def __init__(self, rng):
        super().__init__()
        self.steps, self.parts, widths = [], nn.ModuleList(), [3]
        for _ in range(rng.randint(5, 14)):
            kind = rng.choice([*MODULES, *FUNCTIONS, "again"])
            x = rng.randrange(max(0, len(widths) - 3), len(widths))
            like = [y for y in range(len(widths)) if kind == "cat" or widths[y] == widths[x]]
            y = rng.choice(like)
            if kind == "again":
                fits = [step for step in self.steps if step[0] == "part" and widths[step[2]] == widths[x]]
                if fits:
                    _, part, first, __ = rng.choice(fits)
                    widths.append(widths[1 + self.steps.index(("part", part, first, first))])
                    self.steps.append(("part", part, x, x))
            elif kind in MODULES:
                self.parts.append(module(kind, widths[x], rng))
                self.steps.append(("part", len(self.parts) - 1, x, x))
                with torch.no_grad():
                    widths.append(self.parts[-1](torch.zeros(2, widths[x], 5, 5)).shape[1])
            elif widths[x] % 2 == 0 and widths[x] + widths[y] < 16:
                self.steps.append(("function", kind, x, y))
                widths.append({"cat": widths[x] + widths[y], "half": widths[x] // 2}.get(kind, widths[x]))
        read = {step[k] for step in self.steps for k in (2, 3)}
        self.ends = [k for k in range(len(widths)) if k not in read]
        self.heads = nn.ModuleList(nn.Linear(widths[k], 2, bias=rng.random() < 0.8) for k in self.ends)

    def forward(self, x):
        values = [x]
        for kind, what, a, b in self.steps:
            function = FUNCTIONS.get(what, self.parts[what] if kind == "part" else None)
            values.append(function(*((values[a], values[b]) if what in ("add", "gate", "cat") else (values[a],))))
        return [head(values[k].mean((2, 3))) for head, k in zip(self.heads, self.ends, strict=True)]


def cut(model, rng):
    """Cut rows, columns and single kernels of every layer, channels of shortcuts and scales of norms."""
    seed = torch.Generator().manual_seed(rng.randrange(1000))
    share = rng.choice([0.1, 0.2, 0.3])
    for part in model.modules():
        weight = getattr(part, "weight", getattr(part, "scale", None))
        if isinstance(weight, nn.Parameter):
            shape = weight.shape
            weight.data[torch.rand(shape[:2], generator=seed) < share] = 0.0
            weight.data[torch.rand(shape[0], generator=seed) < share] = 0.0
            if len(shape) > 1:
                weight.data[:, torch.rand(shape[1], generator=seed) < share] = 0.0
    return model.double().eval()


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 200), marks=pytest.mark.slow)], ids=["few", "many"])
@torch.no_grad()
def test_a_random_graph_computes_the_same_for_inputs_of_any_size_when_compacted(seeds):
    smaller = 0
    for seed in seeds:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        model = cut(lived_in(Random(rng), seed), rng)
        small = compact(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))
        assert small.plan.notes == (), seed
        for size in (5, 8):
            x = 2 * torch.randn(3, 3, size, size, dtype=torch.float64)
            torch.testing.assert_close(small.model(x), model(x), msg=lambda text, seed=seed: f"seed {seed}: {text}")
        smaller += bool(small.plan.removed)
    assert smaller > len(seeds) / 2
