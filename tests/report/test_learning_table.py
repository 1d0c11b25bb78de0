from typing import Any

import pytest
from recorded import a_result, a_round
from rich.console import Console

from synaptree.core.errors import DataError
from synaptree.report.learning import Learning, learning, markdown, table
from synaptree.report.paired import Difference
from synaptree.results import Epoch, Result


def epochs(number: int, *accuracies: float, first: int = 0) -> list[Epoch]:
    return [
        Epoch(
            stage="train", round=number, epoch=index, step=index, loss=0.1, validation_accuracy=accuracy,
            density=0.5**number, seconds=1.0,
        )
        for index, accuracy in enumerate(accuracies, first)
    ]  # fmt: skip


def a_run(seed: int, *curves: tuple[float, ...], control: str | None = None, first: int = 0, **changes: Any) -> Result:
    """One round for each curve, from round `first` on."""
    numbers = range(first, first + len(curves))
    logs = [log for number, curve in zip(numbers, curves, strict=True) for log in epochs(number, *curve)]
    return a_result(seed, control, epochs=logs, rounds=[a_round(number) for number in numbers], **changes)


# dense ends at 0.75 in both seeds, which its means over three epochs reach after epoch 5: (0.75 + 0.75 + 0.75) / 3
DENSE = (0.25, 0.5, 0.75, 0.75, 0.75)
# (0.75 + 0.75 + 0.75) / 3 after epoch 3
FAST = (0.75, 0.75, 0.75, 0.75, 0.75)
# (0.5 + 0.75 + 1) / 3 = 0.75 after epoch 4
FAIR = (0.25, 0.5, 0.75, 1.0, 1.0)
# (0.5 + 0.75 + 0.75) / 3 = 0.667 at most
SLOW = (0.25, 0.25, 0.5, 0.75, 0.75)


def test_rows_hold_first_epochs_and_areas_beside_dense() -> None:
    dense, fast = learning([a_run(0, DENSE, FAST), a_run(1, DENSE, FAIR)])
    assert (dense.round, dense.reached, dense.first, dense.target) == (0, 2, 5.0, 0.75)
    assert (dense.first_difference, dense.area_difference) == (None, None)
    # DENSE: (0.375 + 0.625 + 0.75 + 0.75) / 4
    assert dense.area == pytest.approx(0.625)
    assert (fast.round, fast.seeds, fast.reached, fast.first, fast.epochs) == (1, 2, 2, 3.5, 5)
    # FAIR: (0.375 + 0.625 + 0.875 + 1) / 4 = 0.71875; FAST: 0.75
    assert fast.area == pytest.approx((0.75 + 0.71875) / 2)
    assert fast.density == 0.5
    assert fast.indicative


def test_differences_are_paired_by_seed() -> None:
    fast = learning([a_run(0, DENSE, FAST), a_run(1, DENSE, FAIR)])[1]
    # epochs: 3 - 5 and 4 - 5, mean -1.5, s = sqrt(0.5), t = 12.706 with one degree of freedom: 12.706 * 0.5
    assert fast.first_difference is not None
    assert fast.first_difference.mean == -1.5
    assert fast.first_difference.low == pytest.approx(-1.5 - 6.3531, abs=1e-4)
    assert fast.first_difference.high == pytest.approx(-1.5 + 6.3531, abs=1e-4)
    # points: 75 - 62.5 and 71.875 - 62.5, mean 10.9375, half of the spread 1.5625
    assert fast.area_difference is not None
    assert fast.area_difference.mean == pytest.approx(10.9375)
    assert fast.area_difference.high == pytest.approx(10.9375 + 12.7062 * 1.5625, abs=1e-3)


def test_the_target_is_that_of_the_same_seed() -> None:
    # dense ends at (0.75 + 1 + 1) / 3 = 0.9167 in seed 1, which FAST never reaches
    late = (0.25, 0.5, 0.75, 1.0, 1.0)
    dense, fast = learning([a_run(0, DENSE, FAST), a_run(1, late, FAST)])
    assert dense.target == pytest.approx((0.75 + 2.75 / 3) / 2)
    assert (dense.reached, dense.first) == (2, 5.0)
    assert (fast.reached, fast.first) == (1, 3.0)
    assert fast.first_difference == Difference(-2.0, None, None, 1)
    assert fast.area_difference is not None
    assert fast.area_difference.seeds == 2


def test_seeds_where_one_of_both_never_reaches_the_target_have_no_difference() -> None:
    slow = learning([a_run(0, DENSE, SLOW)])[1]
    assert (slow.reached, slow.first, slow.first_difference) == (0, None, None)
    # SLOW: (0.25 + 0.375 + 0.625 + 0.75) / 4 = 0.5, dense 0.625
    assert slow.area_difference == Difference(-12.5, None, None, 1)


def test_trainings_of_unequal_length_are_shown_but_not_compared() -> None:
    short = learning([a_run(0, DENSE, FAST[:3])])[1]
    assert (short.epochs, short.dense_epochs, short.first) == (3, 5, 3.0)
    assert (short.first_difference, short.area_difference) == (None, None)
    assert "| 3 (5) |" in markdown([short])
    assert "Where dense trained another number of epochs" in text([short])


def test_controls_have_the_dense_network_of_the_method() -> None:
    rows = learning([a_run(0, DENSE, FAST), a_run(0, FAIR, control="random", first=1)])
    assert [(row.control, row.round, row.first) for row in rows] == [
        (None, 0, 5.0), (None, 1, 3.0), ("random", 1, 4.0),
    ]  # fmt: skip
    assert rows[2].first_difference == Difference(-1.0, None, None, 1)


def test_without_a_dense_partner_for_every_seed_there_is_no_target() -> None:
    alone = a_run(1, FAIR, control="random", first=1)
    row = learning([a_run(0, DENSE), a_run(0, FAIR, control="random", first=1), alone])[1]
    assert (row.seeds, row.target, row.reached, row.first, row.first_difference) == (2, None, None, None, None)
    assert row.area == pytest.approx(0.71875)
    assert "nothing to reach" in text([row])


def test_a_sparse_network_is_no_dense_one_though_it_comes_first() -> None:
    seeded = a_result(epochs=[*epochs(0, *DENSE), *epochs(1, *FAST)], rounds=[a_round(0, density=0.1), a_round(1)])
    assert [row.target for row in learning([seeded])] == [None, None]


def test_rounds_without_training_or_with_several_have_no_row() -> None:
    untrained = a_result(epochs=epochs(0, *DENSE), rounds=[a_round(0), a_round(1)])
    several = epochs(1, 0.5, 0.6) + epochs(1, 0.5, 0.6)
    twice = a_result(1, epochs=[*epochs(0, *DENSE), *several], rounds=[a_round(0), a_round(1)])
    once_each = a_result(2, epochs=[*epochs(0, *DENSE), *epochs(1, 0.5), *epochs(1, 0.6)], rounds=[a_round(1)])
    assert [row.round for row in learning([untrained])] == [0]
    assert [row.round for row in learning([twice])] == [0]
    assert learning([once_each]) == []


def test_a_round_that_was_not_finished_does_not_count() -> None:
    stopped = a_result(epochs=[*epochs(0, *DENSE), *epochs(1, 0.5)], rounds=[a_round(0)], status="interrupted")
    assert [row.round for row in learning([stopped])] == [0]


def test_runs_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(DataError, match="another configuration"):
        learning([a_run(0, DENSE), a_run(1, DENSE, config={"lr": 0.2})])


def text(rows: list[Learning]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(rows))
    return " ".join(capture.get().split())


def test_the_markdown_of_a_row_reads_as_expected() -> None:
    lines = markdown(learning([a_run(seed, DENSE, FAST) for seed in range(3)])).splitlines()
    assert lines[0] == (
        "| recipe | method | round | density % | epochs | target % | reached | first epoch | to dense, epochs | pairs "
        "| area % | to dense, points | seeds |"
    )
    assert lines[2].endswith("| nnrelief | 0 | 100 | 5 | 75.00 | 3 of 3 | 5.0 | - | - | 62.50 | - | 3 |")
    assert lines[3].endswith(
        "| nnrelief | 1 | 50 | 5 | 75.00 | 3 of 3 | 3.0 | -2.0 [-2.0, -2.0] | 3 | 75.00 "
        "| +12.50 [+12.50, +12.50] | 3 |"
    )


def test_the_terminal_table_reads_as_expected() -> None:
    rows = learning([a_run(seed, DENSE, FAST) for seed in range(3)])
    found = text(rows)
    assert found.startswith("recipes/nnrelief/lenet5.toml: nnrelief network round epochs first by to dense, epochs")
    assert "dense 0 5 5.0 3/3 - 62.50 - " in found
    assert "nnrelief 1 5 3.0 3/3 -2.0 [-2.0,-2.0] 75.00 +12.50 [+12.50,+12.50] " in found
    assert "the mean over 3 epochs reaches" in found
    assert "over seeds: 3." in found
    assert "nothing to reach" not in found
    assert "not compared" not in found


def test_two_pairs_are_counted_and_have_no_interval_in_tables() -> None:
    rows = learning([a_run(seed, DENSE, FAST) for seed in range(2)])
    assert "| -2.0 over 2 |" in markdown(rows)
    assert "2 (fewer than three are indicative)" in text(rows)


def test_the_widest_row_fits_eighty_columns() -> None:
    row = Learning(
        "deep", "gradual_magnitude", "magnitude_erdos_renyi", 14, 10, 0.01, 160, 160, 0.9, 10, 100.2,
        Difference(-10.2, -20.1, -10.3, 10), 0.5, Difference(-10.22, -10.33, -10.11, 10), False,
    )  # fmt: skip
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table([row]))
    assert max(len(line.rstrip()) for line in capture.get().splitlines()) <= 80
    assert "-10.2 [-20.1,-10.3]" in capture.get()
    assert "-10.22 [-10.33,-10.11]" in capture.get()


def test_a_table_of_nothing_is_empty() -> None:
    assert learning([]) == []
    assert markdown([]) == ""
    assert table([]).row_count == 0
