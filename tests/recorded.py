"""Results as runs would leave them, for tests."""

from typing import Any

from synaptree.results import Result, Round

ITEMS = 1000


def a_round(number: int = 0, errors: list[int] | None = None, **changes: Any) -> Round:
    density = 0.5**number
    fields: dict[str, Any] = {
        "round": number, "density": density, "layers": {"fc1": density, "fc2": 1.0},
        "validation_accuracy": 0.9,
        "test_accuracy": None if errors is None else 1 - len(errors) / ITEMS,
        "test_errors": errors, "test_items": None if errors is None else ITEMS,
        "parameters": 1100, "parameters_alive": int(1100 * density),
        "weights": 1000, "weights_alive": int(1000 * density), "norm": 0,
    }
    return Round(**fields | changes)


def a_result(seed: int = 0, control: str | None = None, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "recipe": "recipes/nnrelief/lenet5.toml", "method": "nnrelief", "control": control, "seed": seed,
        "config": {"lr": 0.1, "alpha": [0.95, 0.9]}, "config_hash": "0123456789ab",
        "versions": {"python": "3.11"}, "hardware": {"cores": 2}, "threads": 1, "status": "done",
        "started": "2025-01-01T00:00:00+00:00", "seconds": 1.5, "rounds": [a_round(0, [3, 5])],
    }
    return Result(**fields | changes)
