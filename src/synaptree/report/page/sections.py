"""What a page says, in order: for each data set its methods side by side, for each method what it did and left."""

from collections.abc import Mapping
from dataclasses import dataclass

from synaptree.report import comparison
from synaptree.report.page import comparing, outcome
from synaptree.report.page.chart import Chart, colours
from synaptree.report.page.detail import Detail, detailed
from synaptree.report.page.experiments import Experiment, by_data, experiments
from synaptree.report.page.gather import Found, Gathered
from synaptree.report.page.table import Table

__all__ = ["DataSection", "ExperimentSection", "sections"]


@dataclass(frozen=True)
class ExperimentSection:
    """A method and its controls.

    Attributes:
        title: for people.
        cards: figures that matter first, by what they are.
        said: the outcome in a sentence.
        networks: the method and its controls, with their colours.
        charts: of them all.
        brief: the rounds that matter.
        rounds: all of them.
        detail: one of the runs.
        others: the other runs, with how each ended.
    """

    title: str
    cards: Mapping[str, str]
    said: str
    networks: Mapping[str, str]
    charts: list[Chart]
    brief: Table
    rounds: Table
    detail: Detail
    others: list[str]


@dataclass(frozen=True)
class DataSection:
    """The runs on one data set."""

    data: str
    side_by_side: Chart | None
    standings: Table | None
    networks: Mapping[str, str]
    experiments: list[ExperimentSection]


def sections(
    gathered: Gathered, *, time: bool = False, margins: Mapping[str, float] | None = None
) -> list[DataSection]:
    """Return what a page says of runs; those of different data sets are kept apart.

    Args:
        gathered: the runs.
        time: measure how long each step of the networks takes in the engine.
        margins: points by data set that a network may seem below dense and yet counts as not below; 0.2 by default.
    """
    found = []
    for data, runs in by_data(gathered.runs).items():
        of_data = experiments(runs)
        margin = (margins or {}).get(data, 0.2)
        inner = [_experiment(one, margin, time) for one in of_data]
        ranked = comparing.standings(of_data) if len(of_data) > 1 else []
        names = colours(list(dict.fromkeys(one.name for one in ranked)), "")
        chart = comparing.front_chart(ranked, len({one.model for one in of_data})) if ranked else None
        found.append(DataSection(data, chart, outcome.standings_table(ranked) if ranked else None, names, inner))
    return found


def _experiment(experiment: Experiment, margin: float, time: bool) -> ExperimentSection:
    rows = experiment.rows
    charts = [comparing.accuracy_chart(experiment), comparing.difference_chart(experiment)]
    shown = experiment.detailed
    brief, everything = outcome.rounds_table(comparison.brief(rows, margin)), outcome.rounds_table(rows)
    return ExperimentSection(
        experiment.title, outcome.cards(rows, margin), outcome.outcome(rows, margin), comparing.swatches(experiment),
        [chart for chart in charts if chart], brief, everything, detailed(shown, time),
        [_ended(run) for run in experiment.runs if run is not shown],
    )  # fmt: skip


def _ended(run: Found) -> str:
    return f"{run.name}: {run.result.status}" + (f", {run.result.reason}" if run.result.reason else "")
