"""Runs that were really carried out, small and quick, for tests of what is made of them."""

from pathlib import Path

from synaptree.experiment import start
from synaptree.recipe import load_recipe

PRUNED = """
model = "mlp"
data = "digits"
method = "magnitude"
threads = 1
[model_options]
inputs = 64
hidden = [12]
[method_options]
density = 0.3
[dense]
epochs = 3
batch = 200
lr = 1e-2
[rounds]
rounds = 2
[controls]
random = "all"
"""
GROWN = """
model = "mlp"
data = "digits"
method = "set"
threads = 1
[model_options]
inputs = 64
hidden = [12]
[method_options]
density = 0.2
every = 3
last = 30
[dense]
epochs = 5
batch = 200
lr = 1e-2
"""


def developed(folder: Path, text: str = PRUNED, name: str = "pruned", seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Carry a recipe out and return the folder of its runs."""
    recipe = folder / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text)
    start(load_recipe(recipe), folder / name, seeds=list(seeds))
    return folder / name
