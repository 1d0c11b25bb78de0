import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import ITEMS, a_result, a_round
from rich.console import Console

from synaptree.core.errors import DataError, OptionError
from synaptree.report.comparison import (
    Interval,
    Row,
    as_json,
    brief,
    markdown,
    not_below,
    paired_interval,
    rounds_by_seed,
    sparsest,
    summary,
    table,
)
from synaptree.results import Result


def test_one_seed_gives_the_quantiles_of_the_binomial() -> None:
    # b errs on 10 items of 1,000, a on none: a resample has Binomial(1000, 0.01) of them,
    # whose 2.5 % and 97.5 % quantiles are 4 and 17
    found = paired_interval([[]], [list(range(10))], ITEMS, resamples=20_000)
    assert found.mean == pytest.approx(1.0)
    assert found.low == pytest.approx(0.4)
    assert found.high == pytest.approx(1.7)


def test_seeds_are_resampled_whatever_the_items() -> None:
    # one seed is right everywhere, the other wrong everywhere: two draws of the same seed, one time in four
    # each way, reach the ends however the items fall
    every = list(range(20))
    assert paired_interval([[], every], [every, []], 20) == Interval(0.0, -100.0, 100.0)


def test_the_same_errors_in_both_are_no_difference() -> None:
    errors = [[1, 2], [3]]
    assert paired_interval(errors, errors, 10) == Interval(0.0, 0.0, 0.0)


def test_pairing_leaves_out_what_both_get_wrong() -> None:
    hard = list(range(300))
    paired = paired_interval([hard], [[*hard, 500]], ITEMS)
    assert paired.mean == pytest.approx(0.1)
    assert paired.high <= 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = [list(range(300)), list(range(100, 450))], [list(range(200, 600)), list(range(500, 700))]
    assert paired_interval(a, b, ITEMS, seed=7) == paired_interval(a, b, ITEMS, seed=7)
    assert paired_interval(a, b, ITEMS, seed=7, resamples=50) != paired_interval(a, b, ITEMS, seed=8, resamples=50)


def test_patterns_are_a_shortcut_for_resampling_the_items_themselves() -> None:
    rng = np.random.default_rng(1)
    a, b = ([rng.choice(200, size, replace=False).tolist() for size in (30, 40, 50)] for _ in range(2))
    wrong = np.zeros((2, 3, 200))
    for side, errors in enumerate((a, b)):
        for row, index in enumerate(errors):
            wrong[side, row, index] = 1
    difference = wrong[1] - wrong[0]
    means = [
        100 * difference[np.ix_(rng.integers(3, size=3), rng.integers(200, size=200))].mean() for _ in range(4000)
    ]
    found = paired_interval(a, b, 200, resamples=20_000)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.5)
    assert found.high - found.low > 5


@given(st.lists(st.sets(st.integers(0, 29)), min_size=1, max_size=4), st.floats(0.5, 0.99))
def test_a_wider_level_holds_the_narrower(errors: list[set[int]], level: float) -> None:
    none: list[set[int]] = [set()] * len(errors)
    narrow = paired_interval(none, errors, 30, level=level, resamples=100)
    wide = paired_interval(none, errors, 30, level=0.995, resamples=100)
    assert 0 <= wide.low <= narrow.low <= narrow.high <= wide.high <= 100
    assert narrow.mean == pytest.approx(100 * sum(map(len, errors)) / (30 * len(errors)))


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ([], [], {}, "got 0 and 0"),
        ([[1]], [[1], [2]], {}, "got 1 and 2"),
        ([[10]], [[1]], {}, r"\[0, 10\), got \[10\]"),
        ([[1]], [[-1]], {}, r"got \[-1\]"),
        ([[1]], [[1]], {"level": 1.0}, "level"),
        ([[1]], [[1]], {"resamples": 0}, "resamples"),
    ],
)
def test_errors_that_cannot_be_paired_are_refused(a: Any, b: Any, options: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        paired_interval(a, b, 10, **options)


def test_not_below_looks_at_the_lower_end() -> None:
    assert not_below(Interval(-0.1, -0.2, 0.0))
    assert not not_below(Interval(0.3, -0.21, 0.9))
    assert not_below(Interval(0.0, -0.5, 0.5), margin=0.5)


def three_seeds() -> list[Result]:
    """Dense errs on 10 items, the method on the same less one, the random control on 30."""
    results = []
    for seed in range(3):
        dense, less = list(range(10)), list(range(9))
        results.append(a_result(seed, rounds=[a_round(0, dense), a_round(1, less, bytes=100 + seed)]))
        results.append(a_result(seed, "random", rounds=[a_round(1, list(range(20 + 10 * seed)))]))
    return results


def test_a_summary_has_the_method_before_its_controls() -> None:
    rows = summary(reversed(three_seeds()))
    assert [(row.control, row.round, row.seeds) for row in rows] == [(None, 0, 3), (None, 1, 3), ("random", 1, 3)]


def test_a_row_holds_means_over_seeds_and_the_difference_to_dense() -> None:
    dense, method, random = summary(three_seeds())
    assert dense.difference is None
    assert method.density == 0.5
    assert method.accuracy == pytest.approx(0.991)
    assert method.deviation == pytest.approx(0.0)
    assert method.difference is not None
    assert method.difference.mean == pytest.approx(0.1)
    assert method.parameters_alive == 550
    assert (method.bytes, method.macs_alive) == (101.0, None)
    assert random.accuracy == pytest.approx(0.97)
    assert random.deviation == pytest.approx(0.01)  # of 0.98, 0.97 and 0.96
    assert random.difference is not None
    assert random.difference.mean == pytest.approx(-2.0)
    assert not random.indicative


def test_fewer_than_three_seeds_are_indicative() -> None:
    two, one = summary([a_result(0), a_result(1), a_result(0, "random")])
    assert (two.indicative, two.deviation) == (True, 0.0)
    assert (one.indicative, one.deviation) == (True, None)


def test_without_its_dense_partner_or_test_errors_a_row_has_no_difference() -> None:
    alone = a_result(9, "random", rounds=[a_round(1, [1])])
    assert summary([*three_seeds(), alone])[-1].difference is None
    untested = a_result(rounds=[a_round(0), a_round(1)])
    assert [(r.accuracy, r.difference) for r in summary([untested])] == [(None, None)] * 2


def test_a_seed_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"lenet5.toml', nnrelief, seed 0: round 0 occurs twice"):
        rounds_by_seed([a_result(), a_result(config_hash="f" * 12)])


def test_test_sets_of_different_sizes_are_not_compared() -> None:
    other = a_result(control="random", rounds=[a_round(1, [1], test_items=2000)])
    with pytest.raises(DataError, match=r"tested on \[1000, 2000\] items"):
        summary([a_result(), other])


def test_the_markdown_of_a_row_reads_as_expected() -> None:
    lines = markdown(summary([a_result(rounds=[a_round(0, [1]), a_round(1, [1], bytes=12345)])])).splitlines()
    assert lines[0].startswith("| recipe | method | round | density % |")
    assert lines[1].startswith("| :-- | :-- | --: | --: |")
    assert lines[3] == (
        "| recipes/nnrelief/lenet5.toml | nnrelief | 1 | 50 | 99.90 | +0.00 [+0.00, +0.00] "
        "| 550 | 12,345 | - | 1 (indicative) |"
    )
    assert len({line.count("|") for line in lines}) == 1


def shown(rows: list[Row], width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(rows))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_terminal_table_of_three_seeds_reads_as_expected() -> None:
    lines = shown(summary(three_seeds()))
    assert lines[0] == "recipes/nnrelief/lenet5.toml: nnrelief"
    assert lines[1].split() == [
        "network", "round", "density", "accuracy", "to", "dense,", "points", "parameters", "bytes",
    ]  # fmt: skip
    cells = [line.split() for line in lines[3:]]
    assert cells[0] == ["dense", "0", "100", "%", "99.00", "%", "-", "1,100", "-"]
    assert cells[1] == [
        "nnrelief", "1", "50", "%", "99.10", "%", "+0.10", "[+0.00,+0.30]", "550", "101", "bytes",
    ]  # fmt: skip
    assert cells[2][:7] == ["random", "1", "50", "%", "97.00", "%", "-2.00"]
    assert " ".join(" ".join(lines[6:]).split()) == (
        "Test accuracy; seeds: 3; in brackets 95 % intervals. "
        "Sparsest within 0.2 points of dense on the validation images: round 1; "
        "on the test images it is not below dense (lower end of its interval)."
    )


def test_the_widest_row_fits_eighty_columns() -> None:
    dense = a_round(0, [], parameters_alive=15_245_130, parameters=15_245_130, bytes=99_999_999)
    control = a_round(14, list(range(900)), parameters_alive=15_245_130, parameters=15_245_130, bytes=99_999_999)
    results = [a_result(rounds=[dense]), a_result(control="magnitude_erdos_renyi", rounds=[control])]
    lines = shown(summary(results))
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[4:6]] == ["magnitude_erdos_", "renyi"]
    assert "% -90.0 [-91." in lines[4]


def test_a_brief_table_keeps_dense_the_sparsest_good_round_and_the_last_ones() -> None:
    errors = {0: [], 1: [], 2: [1], 3: list(range(50)), 4: list(range(90))}
    validation = [0.9, 0.9, 0.896, 0.85, 0.8]  # decides; the test errors have no say
    method = a_result(
        rounds=[a_round(number, wrong, validation_accuracy=validation[number]) for number, wrong in errors.items()]
    )
    every = a_result(control="magnitude", rounds=[a_round(number, errors[number]) for number in (1, 2, 3, 4)])
    some = a_result(control="random", rounds=[a_round(number, errors[number]) for number in (1, 3)])
    rows = summary([method, every, some])
    assert [(row.control, row.round) for row in brief(rows, margin=0.5)] == [
        (None, 0), (None, 2), (None, 4), ("magnitude", 2), ("magnitude", 4), ("random", 3),
    ]  # fmt: skip
    best = sparsest(rows, margin=0.5)
    assert best is not None
    assert best.round == 2


def test_no_round_is_good_enough_where_all_are_below_dense() -> None:
    rows = summary([a_result(rounds=[a_round(0, list(range(50))), a_round(1, [], validation_accuracy=0.89)])])
    assert sparsest(rows) is None
    assert [row.round for row in brief(rows)] == [0, 1]
    assert "No round is within 0.2 points of dense on the validation images." in " ".join(" ".join(shown(rows)).split())


def test_runs_of_different_configurations_are_not_averaged() -> None:
    one, other = a_result(0, rounds=[a_round(0, [])]), a_result(1, rounds=[a_round(0, [])])
    other = other.model_copy(update={"config": {**other.config, "lr": 0.2}})
    with pytest.raises(DataError, match="seed 1 ran with another configuration"):
        summary([one, other])


def test_a_round_below_dense_on_the_test_images_is_called_so() -> None:
    rows = summary([a_result(rounds=[a_round(0, []), a_round(1, list(range(50)))])])
    assert "on the test images it is below dense" in " ".join(" ".join(shown(rows)).split())


def test_a_table_of_nothing_is_empty() -> None:
    assert markdown([]) == ""
    assert table([]).row_count == 0
    assert json.loads(as_json([])) == []


def test_the_json_of_a_row_holds_its_fields() -> None:
    row = summary(three_seeds())[2]
    (found,) = json.loads(as_json([row]))
    assert (found["control"], found["seeds"], found["indicative"]) == ("random", 3, False)
    assert found["difference"]["mean"] == pytest.approx(-2.0)


def test_a_sparse_first_round_is_no_dense_network_to_compare_with():
    seeds = [a_result(seed, rounds=[a_round(0, [1, 2], density=0.05), a_round(1, [1])]) for seed in range(3)]
    rows = summary(seeds)
    assert [row.difference for row in rows] == [None, None]
