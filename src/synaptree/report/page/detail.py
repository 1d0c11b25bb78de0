"""One run in detail: how it developed, what its network is, and where that was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from synaptree.core.errors import SynaptreeError
from synaptree.format.errors import FormatError
from synaptree.report.page import developing, drawing, wiring
from synaptree.report.page.chart import Chart
from synaptree.report.page.gather import Found
from synaptree.report.page.networks import Network, input_maps, network_of, shape_of_data
from synaptree.report.page.table import Table
from synaptree.report.page.timing import Timing, timed
from synaptree.results import Result
from synaptree.runtime.errors import EngineError

__all__ = ["Detail", "detailed"]


@dataclass(frozen=True)
class Detail:
    """One run in detail.

    Attributes:
        title: which one, and how it ended.
        unfinished: in a sentence, why it is not at its end; "" where it is.
        development: charts of its training.
        charts: of its network.
        network: what is said of the network, or why nothing is.
        layers: of the network, counted.
        steps: of the network in the engine, measured; None where nobody asked.
        measured: how it was measured, or that it was not.
        facts: seed, versions, hardware.
        config: the whole configuration.
        notes: of the run and its rounds.
        health: what the guards found.
        filters: "layer" and "round" with the values to choose from.
    """

    title: str
    unfinished: str
    development: list[Chart]
    charts: list[Chart]
    network: str
    layers: Table | None
    steps: Table | None
    measured: str
    facts: Mapping[str, str]
    config: Mapping[str, Any]
    notes: list[str]
    health: list[str]
    filters: Mapping[str, list[str]]


def detailed(run: Found, time: bool) -> Detail:
    """Return a run in detail; what its files lack is said, not missing."""
    result = run.result
    development = [
        developing.training_chart(result), developing.density_chart(result), developing.changes_chart(result),
        developing.ages_chart(result),
    ]  # fmt: skip
    charts: list[Chart | None] = []
    try:
        network = network_of(run)
        said = "" if network is None else f"The network at the end of round {network.round}, {network.file.name}."
    except (SynaptreeError, KeyError) as error:
        network, said = None, f"The network could not be read: {error}"
    filters: dict[str, list[str]] = {}
    layers, steps, measured = None, None, ""
    if network is None:
        said = said or (
            "What the network itself is like cannot be shown: its file round_NN.safetensors does not lie beside the "
            "result. Give the run's own folder."
        )
    else:
        charts = _of_network(run, network, filters)
        layers = _layers(network)
        steps, measured = _measured(network) if time else (None, "")
        measured = measured or "Times were not measured; --time measures them on the machine at hand."
    return Detail(
        run.name, _unfinished(run), [chart for chart in development if chart], [chart for chart in charts if chart],
        said, layers, steps, measured, _facts(run), result.config, _notes(result), _health(result), filters,
    )  # fmt: skip


def _of_network(run: Found, network: Network, filters: dict[str, list[str]]) -> list[Chart | None]:
    first, charts = network.layers[0], []
    if first.kind == "linear":
        maps = input_maps(run, first)
        charts.append(drawing.inputs_chart(maps, shape_of_data(run.result)))
        if charts[0] is not None:
            filters["round"] = [str(index) for index in reversed(maps)]
    charts += [drawing.kernels_chart(network.layers), drawing.degrees_chart(network.layers)]
    charts.append(wiring.network_chart(network.layers, past=not network.is_chain))
    filters["layer"] = [layer.name for layer in network.layers]
    return charts


def _layers(network: Network) -> Table:
    head = (
        "layer", "kind", "density %", "weights", "of", "bytes", "dense bytes", "MACs", "of all MACs",
        "where nothing is gained",
    )  # fmt: skip
    rows = []
    for layer in network.layers:
        counted = layer.counted
        rows.append(((
            layer.name, counted.kind, f"{100 * counted.weights_alive / max(1, counted.weights):.3g}",
            f"{counted.weights_alive:,}", f"{counted.weights:,}", f"{layer.bytes:,}", f"{layer.dense_bytes:,}",
            "-" if counted.macs_alive is None else f"{counted.macs_alive:,}",
            "-" if counted.macs is None else f"{counted.macs:,}", layer.why,
        ), False))  # fmt: skip
    return _told(Table(head, rows, (head[0], head[1], head[-1])))


def _told(table: Table) -> Table:
    """Return a table without its last column where that says nothing."""
    if any(cells[-1] for cells, _ in table.rows):
        return table
    return Table(table.head[:-1], [(cells[:-1], own) for cells, own in table.rows], table.words)


def _measured(network: Network) -> tuple[Table | None, str]:
    """Return how long each step takes, and how that was measured, or why it was not."""
    try:
        found = timed(network)
    except (SynaptreeError, EngineError, FormatError) as error:
        return None, f"Not measured: {error}"
    return _steps(found), (
        f"Measured on this machine with one sample and one thread ({found.explanation.isa}); compacted and packed in "
        f"fp32 the network takes {found.bytes:,} bytes."
    )


def _steps(found: Timing) -> Table:
    head = ("step", "operation", "density %", "kernel", "µs", "dense µs", "gain", "where nothing is gained")
    rows = []
    for row in found.explanation.rows:
        why = row.why.replace("no gain: ", "no gain here, because ")
        rows.append(((
            row.name or "-", row.op, "-" if row.density is None else f"{100 * row.density:.3g}", row.kernel,
            "-" if row.microseconds is None else f"{row.microseconds:.2f}",
            "-" if row.dense_microseconds is None else f"{row.dense_microseconds:.2f}",
            "-" if row.gain is None else f"{row.gain:.1f} x", why,
        ), False))  # fmt: skip
    return _told(Table(head, rows, (head[0], head[1], head[3], head[-1])))


def _unfinished(run: Found) -> str:
    """Return why a run is not at its end, in a sentence."""
    result = run.result
    reason = f": {result.reason}" if result.reason else ""
    when = datetime.fromtimestamp(run.written, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    match result.status:
        case "running":
            return f"Unfinished: the run was at work when it last gave a sign, {when}. Its test set is read at the end."
        case "interrupted":
            return f"Unfinished: the run was interrupted{reason}. The same command goes on with it."
        case "failed":
            return f"The run failed{reason}."
    return ""


def _facts(run: Found) -> dict[str, str]:
    result = run.result
    per_epoch = "" if result.seconds_per_epoch is None else f"{result.seconds_per_epoch:.3g} s"
    return {
        "recipe": result.recipe, "method": result.method, "control": result.control or "none, the method itself",
        "seed": str(result.seed), "configuration": result.config_hash, "status": result.status,
        "started": result.started, "took": f"{result.seconds:,.1f} s", "an epoch": per_epoch,
        "commit": result.commit or "", "threads": str(result.threads), "test set": result.test_from or "",
        "file": str(run.file),
        **{f"version of {name}": version for name, version in result.versions.items()},
        **{name: str(value) for name, value in result.hardware.items() if value is not None},
    }  # fmt: skip


def _notes(result: Result) -> list[str]:
    return [*result.notes, *(f"Round {part.round}: {note}" for part in result.rounds for note in part.notes)]


def _health(result: Result) -> list[str]:
    """Return what the guards found, in sentences; older results hold nothing of it."""
    return [_sentence(finding) for finding in getattr(result, "health", None) or []]


def _sentence(finding: Any) -> str:
    """Return a finding with when it was made, and when it was gone."""
    if isinstance(finding, str):
        return finding
    said = finding if isinstance(finding, Mapping) else finding.model_dump(exclude_none=True)
    text = str(said.get("text") or ", ".join(f"{key}: {value}" for key, value in said.items()))
    when = [f"{key} {said[key]}" for key in ("stage", "round", "step") if key in said and "text" in said]
    gone = f" Gone at step {said['until']}." if "until" in said else ""
    return (f"{', '.join(when)}: " if when else "") + text + gone
