import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synaptree.artifact.interchange import read_tensors, write_tensors
from synaptree.core.errors import CheckpointError, NumericError
from synaptree.methods import build
from synaptree.train import zoo
from synaptree.train.checkpoint import (
    BEFORE,
    CHECKPOINT,
    load_checkpoint,
    newest,
    read_checkpoint,
    remove_partial,
    save_checkpoint,
    sizes,
)
from synaptree.train.data import load
from synaptree.train.loop import Interrupted, TrainOptions
from synaptree.train.network import Network
from synaptree.train.programme import Measure, Prune, Surroundings, Train, develop

SHORT = TrainOptions(epochs=2, batch=300, lr=1e-2)
LIVELY = build("rigl", density=0.3, every=1, last=8)
PRUNED = [Prune(build("magnitude", density=0.5)), Train(SHORT)]


def fresh(seed: int) -> nn.Module:
    return zoo.build("mlp", seed=seed, inputs=64, hidden=(12,))


def around(folder: Path, stop_at: int | None = None, **options: Any) -> Surroundings:
    """Where a run happens that is stopped after so many updates."""
    updates = iter(range(1, 1000))
    options.setdefault("stop", (lambda: next(updates) == stop_at) if stop_at else (lambda: False))
    return Surroundings(load("digits"), 7, folder, fresh, **options)


def run(stages: list[Any], where: Surroundings, **options: Any) -> Network:
    network = Network(fresh(where.seed))
    for _ in develop(network, stages, where, **{"identity": "me", **options}):
        pass
    return network


def stopped(stages: list[Any], folder: Path, *moments: int, **options: Any) -> Path:
    """Run and stop after so many updates, again and again; return the checkpoint."""
    for moment in moments:
        with pytest.raises(Interrupted):
            run(stages, around(folder, moment), resume=True, **options)
    return folder / CHECKPOINT


def rewritten(path: Path, change: Any) -> None:
    """Change what a checkpoint says, and write it as one that is whole."""
    from synaptree.train import checkpoint

    tensors, meta = read_tensors(path)
    change(meta["content"])
    write_tensors(path, tensors, meta | {"sha256": checkpoint._digest(tensors, meta["content"])})


def test_masks_are_packed_and_ages_and_counters_compressed(tmp_path: Path) -> None:
    path = stopped([Train(SHORT, method=LIVELY)], tmp_path, 6)
    content = read_checkpoint(path).content["topology"]
    bits = sum(mask.numel() for mask in content["masks"].values())
    found = sizes(path)
    assert bits / 8 <= found["masks"] <= 1.1 * bits / 8
    assert 0 < found["ages"] < 4 * bits / 2  # half of what they are as 32-bit numbers
    assert found["optimizer"] > 2 * found["weights"]  # two moments of Adam
    assert sum(found.values()) == path.stat().st_size


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data.replace(b'"sha256', b'"sha255'),
        lambda data: data.replace(b"model/fc1.weight", b"model/fc1.weighs", 1),
    ],
    ids=["empty", "byte missing", "half", "byte more", "no checksum", "part missing"],
)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path, damage: Any) -> None:
    said: list[str] = []
    path = stopped(PRUNED, tmp_path / "run", 2, 3)
    path.write_bytes(damage(path.read_bytes()))
    network = run(PRUNED, around(tmp_path / "run", say=said.append), resume=True)
    assert len(said) == 1
    assert "the last checkpoint is damaged" in said[0]
    assert "goes on from the one before, of update 2" in said[0]
    straight = run(PRUNED, around(tmp_path / "straight"))
    assert all(torch.equal(a, b) for a, b in zip(network.weights().values(), straight.weights().values(), strict=True))


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    small = Network(nn.Linear(2, 1))
    small.topology.add("weight", (1, 2))
    path = tmp_path / "c"
    save_checkpoint(small, path, identity="me", log={})
    whole = path.read_bytes()
    for number in range(400):
        place = number if number < 16 else number * 7919 % len(whole)
        data = bytearray(whole)
        data[place] ^= 1 << number % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_two_damaged_checkpoints_are_an_error_that_changes_nothing(tmp_path: Path) -> None:
    path = stopped(PRUNED, tmp_path, 2, 3)
    for place in (path, tmp_path / BEFORE):
        place.write_bytes(place.read_bytes()[:-3])
    left = {place: place.read_bytes() for place in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"no other one is whole.*--fresh"):
        run(PRUNED, around(tmp_path), resume=True)
    assert {place: place.read_bytes() for place in tmp_path.iterdir()} == left


def test_a_damaged_checkpoint_does_not_push_out_the_whole_one_before(tmp_path: Path) -> None:
    path = stopped(PRUNED, tmp_path, 2, 3)
    path.write_bytes(b"damaged")
    with pytest.raises(Interrupted):
        run(PRUNED, around(tmp_path, 1, say=lambda line: None), resume=True)  # noqa: ARG005
    assert [read_checkpoint(tmp_path / name).step for name in (CHECKPOINT, BEFORE)] == [3, 2]


def test_between_two_moves_the_one_before_is_enough(tmp_path: Path) -> None:
    path = stopped(PRUNED, tmp_path, 2, 3)
    path.unlink()
    found, damage = newest(path)
    assert found is not None
    assert (found.step, damage) == (2, "")


def test_what_differs_in_another_runs_checkpoint_is_named(tmp_path: Path) -> None:
    ours = {"recipe": "a", "method": "nnrelief", "model": "mlp", "dense": {"epochs": 3, "lr": 0.1}, "at": (1, 2)}
    path = stopped([Train(SHORT)], tmp_path, 2, identity=ours)
    assert read_checkpoint(path).require(ours) is None
    before = path.read_bytes()
    for change, words in [
        ({"recipe": "b"}, "recipe is 'a' there and 'b' here"),
        ({"method": "set"}, "method is 'nnrelief' there and 'set' here"),
        ({"dense": {"epochs": 4, "lr": 0.1}}, "dense.epochs is 3 there and 4 here; use the recipe"),
        ({"at": None, "sweep": {"density": [1]}}, "at.1 is 2 there and 'not set' here"),
    ]:
        with pytest.raises(CheckpointError, match="belongs to another run: ") as error:
            run([Train(SHORT)], around(tmp_path), identity=ours | change, resume=True)
        assert words in str(error.value)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = stopped(PRUNED, tmp_path, 2)
    other = Network(zoo.build("mlp", inputs=64, hidden=(13,)))
    before = other.weights()
    with pytest.raises(CheckpointError, match=r"fc1.weight has shape \(12, 64\) there and has shape \(13, 64\) here"):
        load_checkpoint(other, path, identity="me")
    with pytest.raises(CheckpointError, match=r"0\.weight is missing there"):
        load_checkpoint(Network(nn.Sequential(nn.Linear(2, 2))), path, identity="me")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), other.weights().values(), strict=True))
    assert not other.topology.masks


def test_a_checkpoint_that_lacks_the_masks_it_should_have_is_refused(tmp_path: Path) -> None:
    def forget_masks(content: dict[str, Any]) -> None:
        content["topology"] |= {"masks": {}, "shapes": {}, "births": {}}

    def forget_all(content: dict[str, Any]) -> None:
        forget_masks(content)
        content["topology"] |= {"born": 0, "died": 0}

    for stages, change, words in (
        (PRUNED, forget_all, "comes after Prune"),
        ([Train(SHORT, method=LIVELY)], forget_masks, r"\d+ connections have died"),
    ):
        rewritten(stopped(stages, tmp_path, 2), change)
        with pytest.raises(CheckpointError, match=f"holds no masks, though .*{words}"):
            run(stages, around(tmp_path), resume=True)
        (tmp_path / CHECKPOINT).unlink()
        (tmp_path / BEFORE).unlink(missing_ok=True)


def test_masks_of_parameters_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for part in ("masks", "shapes"):
            content["topology"][part]["fc9.weight"] = content["topology"][part].pop("fc1.weight")

    path = stopped(PRUNED, tmp_path, 2)
    rewritten(path, rename)
    with pytest.raises(CheckpointError, match=r"a mask for fc9.weight of shape \(12, 64\)"):
        run(PRUNED, around(tmp_path), resume=True)


def test_another_machine_is_said_and_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    here = {"processor": "a", "threads": 1, "versions": {"torch": "2.13", "numpy": "2"}}
    with pytest.raises(Interrupted):
        run(PRUNED, around(tmp_path, 3, machine=here))
    said: list[str] = []
    newer = here | {"threads": 2, "versions": {"torch": "2.14", "numpy": "2"}}
    there = around(tmp_path, say=said.append, machine=newer)
    assert run(PRUNED, there, resume=True).step == 8
    (note,) = there.log["notes"]
    assert said == [note]
    assert "from update 3 elsewhere (threads was 1, is 2, versions.torch was 2.13, is 2.14)" in note
    same = around(tmp_path / "same", machine=here)
    run(PRUNED, same)
    assert "notes" not in same.log


def test_checkpoints_are_written_within_an_epoch(tmp_path: Path) -> None:
    steps: list[int] = []

    def look() -> bool:
        steps.append(read_checkpoint(tmp_path / CHECKPOINT).step)
        return False

    run([Train(SHORT)], around(tmp_path, stop=look), every=0.0)
    assert steps == list(range(8))  # the one of the update before, each time


def test_a_network_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    ruined = SHORT.model_copy(update={"optimizer": "sgd", "lr": 1e38})
    said: list[str] = []
    stages = [Train(SHORT), Measure(), Train(ruined)]
    with pytest.raises(NumericError, match=r"the loss is (nan|inf) at update \d+ \(epoch 2, batch \d\)") as error:
        run(stages, around(tmp_path, say=said.append), every=0.0)
    found = read_checkpoint(tmp_path / CHECKPOINT)
    assert f"the state of update {found.step} is kept in {tmp_path / CHECKPOINT}" in str(error.value)
    assert all(torch.isfinite(value).all() for value in found.content["model"].values())
    with pytest.raises(NumericError) as again:
        run(stages, around(tmp_path, say=said.append), resume=True, every=0.0)
    assert str(again.value) == str(error.value)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    left = [tmp_path / ".checkpoint.safetensors.123", tmp_path / "..checkpoint.safetensors.4.4"]
    spared = [tmp_path / ".hidden", tmp_path / "round_00.safetensors"]
    for path in (*left, *spared):
        path.write_bytes(b"")
    remove_partial(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(spared)


def test_a_checkpoint_holds_texts_numbers_and_keys_of_either_kind(tmp_path: Path) -> None:
    network = Network(nn.Linear(2, 1))
    network.trial = {
        "state": {0: {"a": torch.arange(100), "b": torch.tensor(True)}, "1": [1.5, None, "x"]}, "empty": {},
        "half": torch.ones(3, dtype=torch.bfloat16), "no": torch.zeros(0, 4, dtype=torch.bool),
    }  # fmt: skip
    save_checkpoint(network, tmp_path / "c", identity="me", log={"epochs": [{"loss": 0.1}]})
    there = Network(nn.Linear(2, 1))
    log, optimizer = load_checkpoint(there, tmp_path / "c", identity="me")
    assert (log, optimizer) == ({"epochs": [{"loss": 0.1}]}, {})
    assert json.dumps(_plain(there.trial)) == json.dumps(_plain(network.trial))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), value.tolist()]
    if isinstance(value, dict):
        return [[repr(key), _plain(item)] for key, item in value.items()]
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_texts_that_look_like_marks_and_numbers_come_back_as_they_were(tmp_path):
    odd = {"#1": {"$tensor": "a", "'b": [1]}, 2: "two", "plain": {"#-3": None}}
    network = Network(nn.Linear(2, 1))
    save_checkpoint(network, tmp_path / "checkpoint", identity="run", log=odd)
    assert dict(read_checkpoint(tmp_path / "checkpoint").content["log"]) == odd
