from typing import Any

import pytest
from recorded import ITEMS
from standing import POINTS, a_latency, epochs, levels, ran

from synaptree.core.errors import OptionError
from synaptree.report.cost import cost
from synaptree.report.group import entrants
from synaptree.report.standings import Level, Standing
from synaptree.results import Epoch


def rows(found: list[Level], density: float) -> list[Standing]:
    return [row for level in found if level.density == density for row in level.rows]


def test_the_best_is_chosen_on_validation_and_the_test_set_only_tells() -> None:
    # b errs on 5 items fewer than a on test, yet a is the better one on validation
    results = [ran("a", s, {1.0: (0.95, 10), 0.1: (0.93, 15)}) for s in range(3)]
    results += [ran("b", s, {1.0: (0.95, 10), 0.1: (0.92, 10)}) for s in range(3)]
    best, other = rows(levels(results), 0.1)
    assert (best.name, best.verdict, best.to_best) == ("a", "best", None)
    assert (other.name, other.verdict) == ("b", "above")
    assert other.to_best is not None
    assert other.to_best.mean == pytest.approx(0.5)


@pytest.mark.parametrize(("errors", "said"), [(15, "tie"), (16, "tie"), (60, "below")])
def test_a_tie_is_a_difference_whose_interval_holds_zero(errors: int, said: str) -> None:
    results = [ran("a", s, {0.1: (0.93, 15)}) for s in range(3)] + [ran("b", s, {0.1: (0.9, errors)}) for s in range(3)]
    other = rows(levels(results), 0.1)[1]
    assert (other.verdict, other.pairs) == (said, 3)
    assert other.to_best is not None
    assert other.to_best.mean == pytest.approx(100 * (15 - errors) / ITEMS)


def test_only_seeds_that_both_have_are_compared() -> None:
    results = [ran("a", s, {0.1: (0.93, 15)}) for s in range(4)] + [ran("b", s, {0.1: (0.9, 20)}) for s in (2, 3, 9)]
    results += [ran("c", 50, {0.1: (0.9, 20)})]
    found = {row.name: row for row in rows(levels(results), 0.1)}
    assert (found["b"].pairs, found["b"].seeds) == (2, 3)
    assert (found["c"].pairs, found["c"].to_best, found["c"].verdict) == (0, None, None)


def test_a_network_belongs_to_the_nearest_level_and_the_nearest_round_stands_for_its_method() -> None:
    results = [ran("a", 0, {1.0: (0.9, 1), 0.14: (0.9, 2), 0.09: (0.9, 3), 0.08: (0.9, 4), 0.004: (0.9, 5)})]
    found = levels(results)
    assert [(level.density, [row.density for row in level.rows]) for level in found] == [(1.0, [1.0]), (0.1, [0.09])]
    assert [row.round for row in rows(levels(results, every=True), 0.1)] == [1, 2, 3]
    assert [row.density for row in rows(levels(results, levels=[0.08]), 0.08)] == [0.08]


def test_a_seed_network_is_no_result() -> None:
    result = ran("a", 0, {0.05: (0.1, 900), 0.06: (0.9, 10)})
    result.rounds[0].stage = "seed"
    assert [row.round for row in rows(levels([result]), 0.05)] == [1]


def test_controls_stand_below_their_method_and_are_never_the_best() -> None:
    results = [ran("a", s, {1.0: (0.95, 10), 0.1: (0.9, 15)}) for s in range(3)]
    results += [ran("a", s, {0.1: (0.94, 12)}, "random") for s in range(3)]
    results += [ran("b", s, {1.0: (0.95, 10), 0.1: (0.91, 15)}) for s in range(3)]
    found = rows(levels(results), 0.1)
    assert [(row.name, row.verdict) for row in found] == [("b", "best"), ("a", "tie"), ("a: random", "tie")]


def test_what_has_fewer_than_three_seeds_is_indicative_and_best_only_among_its_like() -> None:
    results = [ran("a", s, {0.1: (0.9, 15)}) for s in range(3)] + [ran("b", s, {0.1: (0.95, 10)}) for s in range(2)]
    assert [(row.name, row.indicative) for row in rows(levels(results), 0.1)] == [("a", False), ("b", True)]
    assert [row.verdict for row in rows(levels(results[3:]), 0.1)] == ["best"]


def test_dense_networks_that_were_trained_alike_are_shown_once() -> None:
    results = [ran("a", s, {1.0: (0.95, 10)}) for s in range(2)] + [ran("b", s, {1.0: (0.95, 10)}) for s in range(3)]
    results += [ran("c", 0, {1.0: (0.95, 10)}, dense={"epochs": 2})]
    assert [(row.name, row.seeds) for row in rows(levels(results), 1.0)] == [("b", 3), ("c", 1)]


def test_what_not_every_seed_has_is_left_out() -> None:
    results = [ran("a", s, {0.1: (0.9, 15)}) for s in range(2)]
    results[1].rounds[0].bytes = results[1].rounds[0].test_accuracy = results[1].rounds[0].test_errors = None
    (row,) = rows(levels(results), 0.1)
    assert (row.bytes, row.accuracy, row.deviation, row.epochs) == (None, None, None, None)


def test_latencies_belong_to_the_round_they_were_measured_of() -> None:
    results = [ran("a", s, {0.1: (0.9, 15), 0.05: (0.9, 20)}) for s in range(2)]
    measured = [a_latency("a0", 32, 8, 2), a_latency("a0", 1, 2, 4), a_latency("a1", 1, 4, 6), a_latency("b0", 1, 9, 9)]
    found = levels(results, *measured)
    assert [(s.batch, s.seconds, s.times, s.best) for s in rows(found, 0.1)[0].speeds] == [
        (1, pytest.approx(3e-6), 5, "torch"), (32, pytest.approx(8e-6), 2, "torch"),
    ]  # fmt: skip
    assert rows(found, 0.05)[0].speeds == ()


@pytest.mark.parametrize("wrong", [[], [5.0], [0.0], [0.1, 1.0]])
def test_levels_are_densities(wrong: list[float]) -> None:
    with pytest.raises(OptionError, match=r"levels are densities in \(0, 1\)"):
        levels([ran("a", 0, {0.1: (0.9, 15)})], levels=wrong)


RENEWED = [
    {"stage": "train"}, {"stage": "renew"}, {"stage": "seed"},
    {"stage": "repeat", "times": 2, "programme": [{"stage": "rewind"}, {"stage": "prune"}]},
]  # fmt: skip


@pytest.mark.parametrize(("recorded", "config", "behind"), [
    (epochs((0, 3), (1, 2), (2, 2)), {}, [3, 5, 7]),  # rounds add up
    (epochs((0, 3), (1, 2), (2, 2), stage="train"), {"sweep": {"alpha": [1, 2]}}, [3, 2, 2]),  # each point anew
    (epochs((0, 3), (1, 2), (2, 2)), {"programme": RENEWED}, [3, 2, 4]),  # after "renew" anew
])  # fmt: skip
def test_the_cost_of_a_network_is_the_training_since_its_initial_weights(
    recorded: list[Epoch], config: dict[str, Any], behind: list[int]
) -> None:
    result = ran("a", 0, POINTS, **config)
    result.epochs = recorded
    (entrant,) = entrants([result])
    found = [cost(entrant, 0, number) for number in range(3)]
    assert [(one.epochs, one.seconds) for one in found if one] == [(n, 2.0 * n) for n in behind]


@pytest.mark.parametrize(("control", "behind"), [("magnitude", 3 + 2 + 4), ("shuffled", 3 + 1 + 1 + 4)])
def test_a_control_costs_what_it_starts_from_as_well(control: str, behind: int) -> None:
    own, other = ran("a", 0, POINTS), ran("a", 0, {0.5: (0.9, 1), 0.25: (0.9, 1)}, control)
    own.epochs = epochs((0, 3), (1, 1), (2, 1))
    other.epochs = epochs((1, 2), (2, 4))
    found = cost(entrants([own, other])[1], 0, 2)
    assert found is not None
    assert found.epochs == behind
    alone = entrants([other])[0]
    assert cost(alone, 0, 2) is None
    assert cost(alone, 7, 2) is None
