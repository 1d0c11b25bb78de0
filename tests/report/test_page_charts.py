from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from developed import GROWN, developed
from recorded import a_result, a_round

from synaptree.artifact.masks import read_masks
from synaptree.measure.count import LayerCount
from synaptree.report.comparison import summary
from synaptree.report.page import comparing, developing, drawing, wiring
from synaptree.report.page.experiments import Experiment, experiments
from synaptree.report.page.gather import Found, gather
from synaptree.report.page.networks import LayerFacts, input_maps, network_of
from synaptree.results import Connections, Epoch


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Experiment:
    (found,) = experiments(gather([developed(tmp_path_factory.mktemp("page"))]).runs)
    return found


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Found:
    return gather([developed(tmp_path_factory.mktemp("page"), GROWN, "grown", (0,))]).runs[0]


def an_experiment(*results) -> Experiment:
    return Experiment("r", "nnrelief", "", tuple(Found(result, Path("r.json"), 0.0) for result in results))


def an_epoch(number: int, round_: int = 1, **said: Any) -> Epoch:
    connections = Connections(layers={"fc": 0.5}, **said) if said else None
    return Epoch(
        stage="t", round=round_, epoch=number, step=number, loss=1, validation_accuracy=0.5, density=0.5, seconds=1,
        connections=connections,
    )  # fmt: skip


def facts(kernels: Any, strengths: Any = None, kind: str = "linear", size: int = 1, name: str = "fc") -> LayerFacts:
    kernels = np.array(kernels)
    strengths = kernels if strengths is None else np.array(strengths)
    return LayerFacts(name, kind, kernels, strengths.astype(np.float32), size, LayerCount(name, "Linear", 1, 1), 0)


def trace(chart: Any, name: str) -> dict[str, Any]:
    return next(one for one in chart.as_dict()["data"] if one.get("name") == name)


def test_accuracy_is_drawn_over_density_with_the_spread_over_seeds():
    chart = comparing.accuracy_chart(an_experiment(
        *(a_result(seed, rounds=[a_round(0, list(range(20))), a_round(1, list(range(wrong)))])
          for seed, wrong in ((0, 30), (1, 50))),
        *(a_result(seed, "random", rounds=[a_round(1, list(range(wrong)))]) for seed, wrong in ((0, 90), (1, 110))),
    ))  # fmt: skip
    own, random = trace(chart, "nnrelief"), trace(chart, "random")
    assert (own["x"], own["y"]) == ([100, 50], [98, 96])
    assert (own["error_y"]["array"], own["error_y"]["arrayminus"]) == ([0, 1], [0, 1])
    assert (random["y"], random["meta"]) == ([90], {"network": "random"})
    (dense,) = chart.as_dict()["layout"]["shapes"]
    assert (dense["y0"], dense["y1"]) == (98, 98)
    assert chart.said.startswith("On the test set. Means over seeds")


def test_a_run_that_was_not_tested_yet_is_drawn_by_validation_and_says_so():
    chart = comparing.accuracy_chart(an_experiment(a_result(rounds=[a_round(0), a_round(1)])))
    assert trace(chart, "nnrelief")["y"] == [90, 90]
    assert chart.said.startswith("On the validation set. Not every round has been tested.")
    assert comparing.accuracy_chart(an_experiment(a_result(rounds=[]))) is None


def test_differences_to_dense_have_the_paired_intervals_of_the_comparison(pruned):
    drawn = trace(comparing.difference_chart(pruned), "random")
    wanted = [row.difference for row in summary(run.result for run in pruned.runs) if row.control == "random"]
    assert drawn["y"] == pytest.approx([d.mean for d in wanted], rel=1e-4)
    assert drawn["error_y"]["array"] == pytest.approx([d.high - d.mean for d in wanted], rel=1e-3, abs=1e-4)


def test_the_front_is_chosen_by_validation_even_where_the_test_set_disagrees():
    better = a_result(rounds=[a_round(1, list(range(900)), validation_accuracy=0.95)])
    worse = a_result(rounds=[a_round(1, [], validation_accuracy=0.9)])
    standings = comparing.standings([an_experiment(better), an_experiment(worse)])
    assert [one.best for one in standings] == [True, False]
    chart = comparing.front_chart(standings)
    assert trace(chart, "front")["y"] == [95]
    assert "validation accuracy alone" in chart.said


def test_births_and_deaths_are_counted_from_totals_and_growth_taken_back_is_told_apart():
    result = a_result(rounds=[a_round(0)], epochs=[
        an_epoch(0, born=0, died=10), an_epoch(1, born=5, died=12), an_epoch(2), an_epoch(3, born=2, died=12),
        an_epoch(4, round_=2, born=0, died=7),
    ])  # fmt: skip
    assert developing.changes(result) == [(1, 0, 10, 0), (2, 5, 2, 0), (4, 0, 0, 3), (5, 0, 7, 0)]
    assert {one["name"] for one in developing.changes_chart(result).as_dict()["data"]} == {"born", "died", "undone"}


def test_a_network_pruned_between_rounds_is_told_by_rounds(pruned):
    result = pruned.detailed.result
    assert developing.changes(result)[1:] == [(part.round, part.born, part.died, 0) for part in result.rounds[1:]]
    assert developing.ages_chart(result) is None
    assert "as old as the network" in developing.changes_chart(result).said
    (layers,) = developing.density_chart(result).as_dict()["data"]
    assert layers["y"] == ["fc1", "fc2"]
    assert [10 ** row[-1] for row in layers["z"]] == pytest.approx(list(result.rounds[-1].layers.values()), rel=1e-3)


def test_a_network_that_grows_is_told_by_epochs_with_the_ages_of_its_connections(grown):
    chart = developing.ages_chart(grown.result)
    ages = [epoch.connections.ages for epoch in grown.result.epochs if epoch.connections and epoch.connections.ages]
    assert trace(chart, "median")["y"] == [five[2] for five in ages]
    (layers,) = developing.density_chart(grown.result).as_dict()["data"]
    assert layers["x"] == list(range(1, 11))
    assert 10 ** layers["z"][0][-1] == pytest.approx(grown.result.rounds[-1].layers["fc1"], rel=1e-3)
    assert layers["z"][0][0] == 0


def test_a_layer_that_lost_everything_is_an_empty_cell():
    result = a_result(rounds=[a_round(0), a_round(1, layers={"fc1": 0.0, "fc2": 1.0})])
    (layers,) = developing.density_chart(result).as_dict()["data"]
    assert layers["z"] == [[0, None], [0, 0]]


def test_a_bar_that_dwarfs_all_others_is_cut_off_and_says_its_height():
    epochs = [an_epoch(0, born=0, died=5000)] + [an_epoch(n, born=10 * n, died=5000 + 10 * n) for n in (1, 2, 3)]
    chart = developing.changes_chart(a_result(rounds=[a_round(0)], epochs=epochs))
    assert chart.said.endswith("The bar of epoch 1 is cut off: 5,000. The run did not record their ages.")
    assert chart.as_dict()["layout"]["yaxis"]["range"] == [-13, 13]


def test_a_network_is_counted_as_its_file_says(pruned):
    run = pruned.detailed
    network = network_of(run)
    stored = read_masks(network.file)
    assert network.round == 2
    for layer in network.layers:
        assert np.array_equal(layer.kernels, stored.masks[f"{layer.name}.weight"].numpy())
        assert layer.counted.weights_alive == layer.kernels.sum() == layer.counted.macs_alive
    assert sum(layer.bytes for layer in network.layers) < network.file.stat().st_size
    maps = input_maps(run, network.layers[0])
    assert list(maps) == [0, 1, 2]
    assert maps[0].tolist() == [12] * 64
    assert np.array_equal(maps[2], network.layers[0].kernels.sum(0))


def test_inputs_are_drawn_as_the_image_they_are(pruned):
    run = pruned.detailed
    maps = input_maps(run, network_of(run).layers[0])
    chart = drawing.inputs_chart(maps, (1, 8, 8))
    last = chart.figure.data[-1]
    assert np.array_equal(np.asarray(last.z), maps[2].reshape(8, 8))
    assert [one.visible for one in chart.figure.data] == [False, False, True]
    assert f"{int((maps[2] == 0).sum())} of 64 keep none in round 2" in chart.said
    assert drawing.inputs_chart(maps, (3, 8, 8)) is None
    assert [one.type for one in drawing.inputs_chart(maps, (64,)).figure.data] == ["bar"] * 3


def test_degrees_count_every_unit_once():
    chart = drawing.degrees_chart([facts([[1, 1, 0], [0, 1, 0]])])
    inputs, outputs = chart.figure.data
    assert (list(inputs.x), list(inputs.y)) == ([0, 1, 2], [0, 1, 1])
    assert list(outputs.y) == [1, 1, 1]


def test_kernels_of_wide_layers_are_drawn_in_blocks_that_keep_the_mean():
    kernels = np.zeros((128, 3), dtype=np.int64)
    kernels[:64] = 9
    chart = drawing.kernels_chart([facts(kernels, kind="conv", size=9), facts([[1]])])
    (drawn,) = chart.figure.data
    assert np.asarray(drawn.z).shape == (64, 3)
    assert np.asarray(drawn.z).mean() == 50
    assert "blocks of neighbouring kernels" in chart.said
    assert "64 of fc" in chart.said
    assert drawing.kernels_chart([facts([[1]])]) is None


def test_a_small_network_is_drawn_whole():
    layers = [facts([[1, 0], [1, 1]], [[2, 0], [-1, 3]]), facts([[0, 1]])]
    assert wiring.wires(layers, 10) == [(1, 1, 0, 1.0), (0, 1, 1, 3.0), (0, 0, 0, 2.0), (0, 0, 1, -1.0)]
    chart = wiring.network_chart(layers)
    assert chart.said == "All 4 connections, units as points."
    assert trace(chart, "negative")["x"] == [0, 1, None]


def test_of_a_large_network_whole_paths_to_the_outputs_are_drawn_and_it_is_said():
    rng = np.random.default_rng(0)
    layers = [facts(rng.integers(0, 2, (30, 40)), rng.normal(size=(30, 40))) for _ in range(1)]
    layers += [facts(rng.integers(0, 2, (20, 30)), rng.normal(size=(20, 30)))]
    wires = wiring.wires(layers, 20)
    assert len(wires) == 20
    starts = {wire.start for wire in wires if wire.column == 1}
    assert {wire.end for wire in wires if wire.column == 0} <= starts
    strongest = max(abs(wire.strength) for wire in wires if wire.column == 1)
    assert strongest == pytest.approx(np.abs(layers[1].strengths * layers[1].kernels).max())
    assert wiring.network_chart(layers, most=20).said.startswith("A sample: the 20 strongest of ")


def test_layers_that_do_not_fit_together_are_not_drawn_and_flattened_maps_are():
    conv = facts(np.full((2, 1), 9), kind="conv", size=9)
    assert wiring.network_chart([facts(np.ones((3, 2))), facts(np.ones((1, 4)))]) is None
    assert {wire.start for wire in wiring.wires([conv, facts(np.ones((1, 8), dtype=int))], 99) if wire.column} == {0, 1}
    assert wiring.network_chart([facts(np.zeros((3, 2)))]) is None


def test_drawing_draws_nothing_at_random(pruned):
    before = torch.get_rng_state()
    network_of(pruned.detailed)
    assert torch.equal(before, torch.get_rng_state())
