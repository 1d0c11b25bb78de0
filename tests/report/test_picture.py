from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from synaptree.core.errors import OptionError
from synaptree.report.picture import METHOD, figure, picture
from synaptree.results import Result, Round

LAYERS = ("conv1", "conv2", "fc1", "fc2")


def a_round(number: int, density: float, accuracy: float, **changes: Any) -> Round:
    shares = np.clip(density * np.array([3.0, 1.5, 1.0, 4.0]), 0, 1)
    fields: dict[str, Any] = {
        "round": number, "density": density, "layers": dict(zip(LAYERS, shares.tolist(), strict=True)),
        "validation_accuracy": accuracy - 0.01, "test_accuracy": accuracy,
        "parameters": 110, "parameters_alive": round(110 * density), "weights": 100,
        "weights_alive": round(100 * density), "norm": 0,
    }
    return Round(**fields | changes)


def a_result(rounds: list[Round], seed: int = 0, control: str | None = None, recipe: str = "lenet5") -> Result:
    return Result(
        recipe=recipe, method="nnrelief", control=control, seed=seed, config={}, config_hash="0" * 12,
        versions={}, hardware={}, threads=1, status="done", started="2025-01-01T00:00:00+00:00", seconds=1,
        rounds=rounds,
    )


def two_seeds() -> list[Result]:
    return [
        a_result([a_round(0, 1.0, 0.98), a_round(1, 0.2, 0.97)], seed=0),
        a_result([a_round(0, 1.0, 0.96), a_round(1, 0.1, 0.95)], seed=1),
        a_result([a_round(1, 0.15, 0.90)], control="random"),
    ]


def line(axes: Axes, label: str) -> Line2D:
    (found,) = [drawn for drawn in axes.lines if drawn.get_label() == label]
    return found


def test_accuracy_is_drawn_over_density_as_a_mean_over_seeds() -> None:
    left, _ = figure(two_seeds()).axes
    curve = line(left, "nnrelief")
    np.testing.assert_allclose(curve.get_xdata(), [1.0, 0.15])
    np.testing.assert_allclose(curve.get_ydata(), [97.0, 96.0])
    assert left.get_xscale() == "log"
    assert left.xaxis_inverted()
    assert left.get_title("left") == "Accuracy on the test set"


def test_the_band_reaches_from_the_lowest_to_the_highest_seed() -> None:
    left, _ = figure(two_seeds()).axes
    corners = left.collections[-1].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(95)
    assert corners[:, 1].max() == pytest.approx(98)


def test_dense_is_a_dashed_level_line() -> None:
    left, _ = figure(two_seeds()).axes
    dense = line(left, "dense")
    np.testing.assert_allclose(dense.get_ydata(), [97.0, 97.0])
    assert dense.is_dashed()


def test_a_control_of_one_density_is_a_single_marker() -> None:
    left, _ = figure(two_seeds()).axes
    control = line(left, "random")
    assert control.get_linestyle() == "None"
    assert control.get_marker() not in ("None", line(left, "nnrelief").get_marker())
    np.testing.assert_allclose(control.get_xydata(), [[0.15, 90.0]])


def test_the_method_itself_is_thick_on_top_and_named_first() -> None:
    drawn = figure(two_seeds())
    left, _ = drawn.axes
    method, control = line(left, "nnrelief"), line(left, "random")
    assert method.get_linewidth() > 2 * control.get_linewidth()
    assert method.get_zorder() > control.get_zorder()
    assert (method.get_color(), control.get_color() == METHOD) == (METHOD, False)
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["nnrelief", "random", "dense"]


def test_a_control_called_dense_keeps_its_own_entry() -> None:
    (legend,) = figure([*two_seeds(), a_result([a_round(0, 1.0, 0.97)], control="dense")]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["nnrelief", "dense", "random", "dense"]


def test_an_untrained_seed_network_has_no_accuracy_but_a_density_of_its_layers() -> None:
    rounds = [a_round(0, 0.05, 0.1, stage="seed"), a_round(1, 0.2, 0.9), a_round(2, 0.1, 0.8)]
    left, right = figure([a_result(rounds)]).axes
    assert list(line(left, "nnrelief").get_ydata()) == pytest.approx([90, 80])
    assert all(len(np.asarray(one.get_xdata())) == 3 for one in right.get_lines()[:1])


def test_validation_stands_in_for_all_where_one_round_has_no_test_accuracy() -> None:
    results = two_seeds()
    results[2].rounds[0].test_accuracy = None
    left, _ = figure(results).axes
    assert left.get_title("left") == "Accuracy on the validation set"
    np.testing.assert_allclose(line(left, "nnrelief").get_ydata(), [96.0, 95.0])


def test_density_of_each_layer_is_drawn_over_the_rounds_of_the_method_itself() -> None:
    _, right = figure(two_seeds()).axes
    assert [drawn.get_label() for drawn in right.lines] == list(LAYERS)
    np.testing.assert_allclose(line(right, "fc1").get_xydata(), [[0, 1.0], [1, 0.15]])
    assert right.get_yscale() == "log"
    assert right.get_legend() is None
    assert sorted(text.get_text() for text in right.texts) == sorted(LAYERS)


def test_names_of_layers_that_end_together_stand_apart() -> None:
    rounds = [a_round(k, 0.5**k, 0.9, layers={f"layer{i}": 0.5**k for i in range(12)}) for k in range(3)]
    _, right = figure([a_result(rounds)]).axes
    heights = sorted(text.xyann[1] for text in right.texts)  # type: ignore[attr-defined]
    assert len(heights) == 12
    np.testing.assert_allclose(np.diff(heights), 0.045)
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_a_deep_network_names_some_of_its_layers_only() -> None:
    rounds = [a_round(0, 1.0, 0.9, layers={f"layer{i}": 1.0 for i in range(110)})]
    _, right = figure([a_result(rounds)]).axes
    assert (len(right.lines), len(right.texts)) == (110, 22)


def test_the_line_of_a_dead_layer_ends() -> None:
    rounds = [a_round(0, 1.0, 0.9, layers={"a": 1.0, "b": 1.0}), a_round(1, 0.5, 0.9, layers={"a": 1.0, "b": 0.0})]
    _, right = figure([a_result(rounds)]).axes
    np.testing.assert_array_equal(line(right, "b").get_ydata(), [1.0, np.nan])
    assert {text.get_text(): text.xy[0] for text in right.texts} == {"a": 1, "b": 0}  # type: ignore[attr-defined]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_written_whole_and_the_same_each_time(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"lenet5.{ending}"
    picture(two_seeds(), path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    picture(two_seeds(), path)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\.png or \.svg file, got .*lenet5\.gif"):
        picture(two_seeds(), tmp_path / "lenet5.gif")


def test_a_picture_shows_one_recipe(tmp_path: Path) -> None:
    other = a_result([a_round(0, 1.0, 0.9)], recipe="lenet300")
    with pytest.raises(OptionError, match=r"one recipe and method, got .*lenet300.*lenet5"):
        picture([*two_seeds(), other], tmp_path / "both.png")
    with pytest.raises(OptionError, match="no rounds"):
        figure([])
    with pytest.raises(OptionError, match="nnrelief itself is not among the results"):
        figure(two_seeds()[2:])
    assert not list(tmp_path.iterdir())
