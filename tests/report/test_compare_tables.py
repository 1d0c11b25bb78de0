import json
from pathlib import Path

import pytest
from rich.console import Console
from standing import POINTS, TASK, a_latency, epochs, levels, ran

from synaptree.core.errors import DataError, OptionError
from synaptree.report import standings_table, which
from synaptree.report.latency import FILE, read_latencies, write_latencies
from synaptree.report.standings_picture import picture


def compared(*latencies: object) -> list:
    """Two methods of three seeds at 10 %, the second one below; and a control of the first that is level."""
    results = [ran("a", s, {1.0: (0.95, 10), 0.1: (0.93, 15)}) for s in range(3)]
    results += [ran("b", s, {0.11: (0.92, 60)}) for s in range(3)]
    results += [ran("a", s, {0.1: (0.91, 16)}, "random") for s in range(3)]
    for result in results:
        result.epochs = epochs((0, 4))
    return levels(results, *latencies)


def shown(found: list, width: int) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(standings_table.table(found, width))
    return "\n".join(" ".join(line.split()) for line in captured.get().splitlines())


def test_a_wide_terminal_shows_everything() -> None:
    text = shown(compared(a_latency("a0", 1, 2.5, 4.04)), 140)
    assert "network density % test % to the best, points bytes epochs minutes seeds latency" in text
    assert "dense (a) 100 99.00 ± 0.00 best 101 4 0.1 3 1: 2.5 µs (4.0x)" in text
    assert "a 10 98.50 ± 0.00 best 101 4 0.1 3 not measured" in text
    assert "random 10 98.40 ± 0.00 -0.10" in text
    assert "b 11 94.00 ± 0.00 -4.50" in text
    assert text.count("not measured") == 3
    assert "selected on the test set." in text
    assert "indicative" not in text


def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_number() -> None:
    text = shown(compared(), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "network density % test % to the best, points bytes epochs" in text
    assert "dense (a) 100 99.00 best 101 4" in text
    assert "also shows minutes, seeds and latency." in text
    assert "latency: not measured; --measure" in text


def test_markdown_and_json_hold_every_network() -> None:
    found = compared()
    lines = standings_table.markdown(found).splitlines()
    assert lines[0] == (
        "| level | network | recipe | density % | test % | to the best, points |  | to dense, points | bytes | latency "
        "| epochs | minutes | seeds |"
    )
    assert len(lines) == 2 + 4
    assert "| about 10 % | a: random | a-short | 10 | 98.40 ± 0.00 |" in lines[4]
    parsed = json.loads(standings_table.json(found))
    assert [(level["density"], [row["name"] for row in level["rows"]]) for level in parsed] == [
        (1.0, ["a"]), (0.1, ["a", "a: random", "b"])
    ]  # fmt: skip


def test_nothing_to_show_is_no_table() -> None:
    assert standings_table.caption([]) == standings_table.markdown([]) == ""


def test_the_cheapest_of_those_level_with_the_best_is_told_and_who_is_not() -> None:
    results = [ran("a", s, {0.1: (0.93, 15)}) for s in range(3)] + [ran("b", s, {0.1: (0.92, 15)}) for s in range(3)]
    results += [ran("c", s, {0.1: (0.91, 80)}) for s in range(3)]
    for result in results:
        result.epochs = epochs((0, {"a": 9, "b": 5, "c": 1}[result.method]))
    (answer,) = which.answers(levels(results))
    assert answer.best is not None
    assert answer.cheapest is not None
    assert (answer.best.name, answer.cheapest.name) == ("a", "b")
    assert ([row.name for row in answer.level_with], [row.name for row in answer.below]) == (["b"], ["c"])
    text = which.markdown({TASK: levels(results)}, {TASK.group: ["rigl/x (2 of 3 runs)"], "resnet20-cifar10": ["y"]})
    assert "| about 10 % | a at 10 % (98.50 %) | b at 10 % (98.50 %) | - | b: 5 epochs | c at 10 % (92.00 %) |" in text
    assert "No dense network beside them." in text
    assert "Not run, or not all of it: rigl/x (2 of 3 runs)." in text
    assert "- resnet20-cifar10: y" in text


def test_no_answer_is_given_where_there_is_no_network() -> None:
    text = which.markdown({TASK: levels([ran("a", 0, POINTS)], levels=[0.5, 0.25])}, {})
    assert "Dense network of the recipe of a* (99.90 %)." in text
    assert "No network at these densities.\nAll recipes were run." in text


def test_measurements_are_kept_and_replaced_by_later_ones(tmp_path: Path) -> None:
    assert read_latencies(tmp_path) == []
    write_latencies(tmp_path / "new", [a_latency("a0", 1, 2, 4), a_latency("a0", 32, 8, 2)])
    write_latencies(tmp_path / "new", [a_latency("a0", 1, 3, 4)])
    found = read_latencies(tmp_path / "new")
    assert [(one.batch, round(1e6 * one.seconds)) for one in found] == [(1, 3), (32, 8)]


def test_a_damaged_line_of_measurements_is_named(tmp_path: Path) -> None:
    file = write_latencies(tmp_path, [a_latency("a0", 1, 2, 4)])
    file.write_text(file.read_text() + '{"config_hash": "a1", "round": -1}\n')
    with pytest.raises(DataError, match=rf"{FILE}, line 2: round: .*; remove the line"):
        read_latencies(tmp_path)
    assert len(file.read_text().splitlines()) == 2


def test_a_picture_is_the_same_file_each_time(tmp_path: Path) -> None:
    found = compared()
    for name in ("a.svg", "b.svg"):
        picture(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(OptionError, match=r"a \.png or \.svg file"):
        picture(found, tmp_path / "a.pdf")
    with pytest.raises(OptionError, match="at least one level"):
        picture([], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
