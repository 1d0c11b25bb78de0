from recorded import a_result, a_round
from rich.console import Console

from synaptree.report.stages import markdown, stages, table
from synaptree.results import Result


def developed() -> list[Result]:
    """A seed of 100 weights that grows by 300 or 500, and is pruned to 200; only seed 0 has been tested."""
    results = []
    for seed, born in enumerate((300, 500)):
        grown = a_round(1, stage="grow", born=born, died=0, density=(100 + born) / 1000)
        pruned = a_round(2, [1] if seed == 0 else None, stage="prune", born=0, died=born - 100, density=0.2)
        results.append(a_result(seed, rounds=[a_round(0, stage="seed", born=0, died=0, density=0.1), grown, pruned]))
    return results


def test_rows_hold_means_over_seeds() -> None:
    seed, grown, pruned = stages(developed())
    assert (seed.stage, seed.round, seed.density, seed.born, seed.died) == ("seed", 0, 0.1, 0, 0)
    # 300 and 500 born, 400 and 600 of 1,000 weights alive
    assert (grown.stage, grown.born, grown.died, grown.density, grown.seeds) == ("grow", 400, 0, 0.5, 2)
    # 200 and 400 died
    assert (pruned.stage, pruned.born, pruned.died, pruned.validation) == ("prune", 0, 300, 0.9)
    assert pruned.accuracy is None
    assert pruned.indicative


def test_controls_come_after_the_method() -> None:
    rows = stages([a_result(0, "random", rounds=[a_round(1, [1])]), a_result()])
    assert [(row.control, row.round, row.accuracy) for row in rows] == [(None, 0, 0.998), ("random", 1, 0.999)]


def test_results_from_before_stages_were_recorded_still_read() -> None:
    old = a_result().model_dump(mode="json")
    for part in old["rounds"]:
        for field in ("stage", "born", "died"):
            del part[field]
    (row,) = stages([Result.model_validate(old)])
    assert (row.stage, row.born, row.died) == (None, None, None)
    last = markdown([row]).splitlines()[2]
    assert last.endswith("| nnrelief | 0 | - | 100 | - | - | 90.00 | 99.80 | 1 (indicative) |")


def test_the_terminal_table_reads_as_expected() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table([*stages(developed()), *stages([a_result(control="random", rounds=[a_round(1, [1])])])]))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines[1] == "network round stage density % born died validation % test %"
    assert lines[3:7] == [
        "nnrelief 0 seed 10 0 0 90.00 -",
        "nnrelief 1 grow 50 400 0 90.00 -",
        "nnrelief 2 prune 20 0 300 90.00 -",
        "random 1 - 50 - - 90.00 99.90",
    ]
    assert lines[7] == "Means over seeds: 1 to 2 (fewer than three are indicative)."


def test_a_table_of_nothing_is_empty() -> None:
    assert stages([]) == []
    assert markdown([]) == ""
    assert table([]).row_count == 0
