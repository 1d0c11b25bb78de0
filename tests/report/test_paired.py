from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import a_result, a_round
from rich.console import Console

from synaptree.core.errors import DataError, OptionError
from synaptree.report.paired import Difference, against, markdown, paired_difference, shown, table
from synaptree.results import Result


def test_the_interval_is_that_of_students_t() -> None:
    # differences 1, 2, 3: mean 2, s = 1, and t = 4.3027 with two degrees of freedom: 4.3027 / sqrt(3) = 2.4841
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.4841, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.4841, abs=1e-4)


def test_a_single_seed_has_a_difference_but_no_interval() -> None:
    assert paired_difference([1.0], [3.0]) == Difference(-2.0, None, None, 1)


def test_what_both_sides_share_has_no_part_in_the_interval() -> None:
    assert paired_difference([1.0, 101.0, 51.0], [0.0, 100.0, 50.0]) == Difference(1.0, 1.0, 1.0, 3)


numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6), st.floats(0.5, 0.94))
def test_the_sides_may_be_swapped_and_a_wider_level_holds_the_narrower(
    pairs: list[tuple[float, float]], level: float
) -> None:
    a, b = (list(side) for side in zip(*pairs, strict=True))
    narrow, wide, swapped = paired_difference(a, b, level=level), paired_difference(a, b), paired_difference(b, a)
    assert None not in (narrow.low, narrow.high, wide.low, wide.high, swapped.low)
    assert (swapped.mean, swapped.low) == pytest.approx((-wide.mean, -(wide.high or 0.0)))
    assert (wide.low or 0.0) <= (narrow.low or 0.0) <= narrow.mean <= (narrow.high or 0.0) <= (wide.high or 0.0)


@pytest.mark.parametrize(
    ("a", "b", "level", "words"),
    [([], [], 0.95, "got 0 and 0"), ([1.0], [1.0, 2.0], 0.95, "got 1 and 2"), ([1.0], [1.0], 1.0, "level")],
)
def test_what_cannot_be_paired_is_refused(a: Any, b: Any, level: float, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        paired_difference(a, b, level=level)


def test_a_difference_of_nothing_is_shown_without_a_sign_of_its_own() -> None:
    assert shown(Difference(-0.001, -0.004, 1234.0, 3), ",.2f") == "+0.00 [+0.00, +1,234.00]"


def grown(seed: int, method: str, alive: int, errors: list[int], **changes: Any) -> Result:
    """A programme that grows to `alive` of 1,000 weights."""
    last = a_round(1, errors, stage="grow", weights_alive=alive, density=alive / 1000, validation_accuracy=0.75)
    return a_result(seed, recipe="mlp-grow", method=method, rounds=[a_round(0, [1]), last], **changes)


def two_recipes() -> list[Result]:
    """Strategic growth has 100, 200 and 300 weights fewer; it errs on item 2 only, random growth on 2 and 3."""
    strategic = [grown(seed, "strategic", 500 - 100 * seed, [2]) for seed in range(3)]
    return strategic + [grown(seed, "random", 600, [2, 3]) for seed in range(3)]


def test_a_recipe_is_compared_with_another_measure_by_measure() -> None:
    rows = against(two_recipes(), "random/mlp-grow")
    assert [(row.round, row.measure) for row in rows] == [
        (number, measure) for number in (0, 1) for measure in ("test %", "validation %", "density %", "weights")
    ]  # fmt: skip
    assert {(row.name, row.method, row.other) for row in rows} == {("mlp-grow", "strategic", "random/mlp-grow")}
    assert all(row.difference.mean == 0 for row in rows[:4])
    test, validation, density, weights = rows[4:]
    # errors on 1 and 2 of 1,000 items
    assert (test.here, test.there) == pytest.approx((99.9, 99.8))
    assert test.difference.mean == pytest.approx(0.1)
    assert (validation.here, validation.difference.mean) == (75.0, 0.0)
    # 500, 400 and 300 of 1,000 weights against 600: -10, -20 and -30 points, s = 10, half 24.841 as above
    assert (density.here, density.there) == pytest.approx((40.0, 60.0))
    assert density.difference.mean == pytest.approx(-20.0)
    assert density.difference.high == pytest.approx(-20 + 24.841, abs=1e-3)
    assert (weights.here, weights.there, weights.difference.mean) == (400.0, 600.0, -200.0)
    assert weights.difference.low == pytest.approx(-200 - 248.41, abs=1e-2)
    assert weights.stage == "grow"
    assert not weights.indicative


def test_only_seeds_and_rounds_of_both_count() -> None:
    strategic = [grown(seed, "strategic", 500, [2]) for seed in (0, 1)]
    random = [a_result(seed, recipe="mlp-grow", method="random", rounds=[a_round(1, [])]) for seed in (1, 2)]
    rows = against([*strategic, *random], "random/mlp-grow")
    assert {(row.round, row.difference.seeds, row.indicative) for row in rows} == {(1, 1, True)}
    assert rows[-1].difference == Difference(0.0, None, None, 1)


def test_fewer_than_three_common_seeds_are_indicative() -> None:
    results = two_recipes()
    assert not any(row.indicative for row in against(results, "random/mlp-grow"))
    rows = against(results[1:], "random/mlp-grow")
    assert [row.indicative for row in rows] == [True] * 8
    assert markdown(rows).count("| 2 (indicative) |") == 8


def test_other_data_other_models_and_controls_are_left_out() -> None:
    results = two_recipes()
    results += [grown(0, "magnitude", 10, [], config={"data": "other"}), grown(0, "nnrelief", 10, [], control="random")]
    assert {row.method for row in against(results, "random/mlp-grow")} == {"strategic"}


def test_without_test_errors_there_is_no_test_accuracy() -> None:
    untested = a_result(recipe="mlp-grow", method="random", rounds=[a_round(1)])
    rows = against([*two_recipes()[:3], untested], "random/mlp-grow")
    assert [row.measure for row in rows] == ["validation %", "density %", "weights"]


def test_test_sets_of_different_sizes_are_not_compared() -> None:
    other = a_result(recipe="mlp-grow", method="random", rounds=[a_round(1, [1], test_items=2000)])
    with pytest.raises(DataError, match=r"tested on \[1000, 2000\] items"):
        against([*two_recipes()[:3], other], "random/mlp-grow")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random/mlp-grew", "did you mean 'random/mlp-grow'"),
        ("mlp-grow", "several methods; name one: random/mlp-grow, strategic/mlp-grow"),
    ],
)
def test_a_recipe_that_is_not_there_or_not_the_only_one_is_named(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        against(two_recipes(), name)


def test_a_recipe_of_one_method_needs_no_method_before_it() -> None:
    results = [*two_recipes()[:3], grown(0, "random", 600, []).model_copy(update={"recipe": "mlp-random"})]
    assert {row.other for row in against(results, "mlp-random")} == {"random/mlp-random"}


def test_nothing_to_compare_with_is_an_error() -> None:
    with pytest.raises(OptionError, match="no other recipe on the same data"):
        against(two_recipes()[:3], "mlp-grow")
    with pytest.raises(OptionError, match="rounds and seeds in common with 'random/mlp-grow'"):
        against([*two_recipes()[:1], *two_recipes()[4:]], "random/mlp-grow")


def test_the_tables_read_as_expected() -> None:
    rows = against(two_recipes(), "random/mlp-grow")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(rows))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines[0] == "mlp-grow: strategic (here) against random/mlp-grow (there)"
    assert lines[1] == "round stage measure here there difference"
    assert lines[10] == "1 grow weights 400 600 -200 [-448, +48]"
    assert "Same seeds on both sides: 3; in brackets 95 % intervals" in " ".join(lines)
    assert markdown(rows).splitlines()[-1] == (
        "| mlp-grow | strategic | random/mlp-grow | 1 | grow | weights | 400 | 600 | -200 [-448, +48] | 3 |"
    )


def test_stages_of_different_names_are_both_named() -> None:
    results = two_recipes()
    results[3].rounds[1].stage = "random growth"
    stages = {row.stage for row in against(results, "random/mlp-grow") if row.round == 1}
    assert stages == {"grow / random growth"}
