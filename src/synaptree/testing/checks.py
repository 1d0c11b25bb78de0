"""The checks, one function each.

A check takes a `Subject` and returns None, or the reason why it does not apply to the method; it raises
if the method fails.
"""

import inspect
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from synaptree.artifact.syn import save
from synaptree.core.layer import layers_of
from synaptree.core.method import METHODS, Method, build
from synaptree.core.rule import Group, Part
from synaptree.core.schedule import as_schedule
from synaptree.core.topology import Topology
from synaptree.rules.density import Density
from synaptree.rules.structure import Weights
from synaptree.testing import together
from synaptree.testing.golden import Golden, replay, wanted
from synaptree.testing.require import counts, require, require_legal, require_same, require_zeros
from synaptree.testing.toys import CONVOLUTIONAL, DENSE, ONE_ROW, RESIDUAL, STEPS, TIED, Toy, Trial

__all__ = ["CHECKS", "Check", "Subject"]

_ADAM = partial(torch.optim.Adam, lr=0.125)


@dataclass(frozen=True)
class Subject:
    """The method under test.

    Attributes:
        build: makes it from options.
        golden: its golden edits, and the options with which it acts on the toys.
    """

    build: Callable[..., Method]
    golden: Golden

    def method(self, **options: Any) -> Method:
        """Return the method with the options that make it act on the toys, changed by `options`."""
        return self.build(**{**self.golden.training, **options})

    def toys(self, *toys: Toy) -> Iterator[Toy]:
        """Yield those of `toys` that have layers the method prunes."""
        return (toy for toy in toys if toy.kinds & self.method().granularity.keys())


Check = Callable[[Subject], str | None]


def dead_weights_are_zero(subject: Subject) -> str | None:
    """After every edit and every update."""
    edits = []
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        trial = Trial(subject.method(), toy, optimizer=_ADAM)
        for _ in trial.develop():
            require_zeros(trial)
        edits += trial.edits
    require(any(edit.changes() for edit in edits), (
        f"wanted an edit that changes masks within {STEPS} updates, got none on any toy; "
        "give options with which it acts under [training] in its golden file"
    ))
    return None


def counts_are_exact(subject: Subject) -> str | None:
    """The rule `Density` meets its density to the connection, and an option `density` is what stays in the end."""
    rule = subject.method().rule
    if not isinstance(rule, Density) or not isinstance(rule.structure, Weights):
        return "its rule promises no count"
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        trial = Trial(subject.method(), toy).run()
        for edit in trial.edits:
            before, after = counts(edit.before.masks), counts(edit.after.masks)
            count = _promised(rule, edit.step, *before)
            require(after[0] == count, f"{toy.name}, step {edit.step}: wanted {count} connections, got {after[0]}")
        alive, total = counts(trial.topology.masks)
        density = trial.method.options.get("density", alive / total)
        count = round(density * total)
        require(alive == count, f"{toy.name}: density {density} wants {count} of {total}, got {alive}")
    return None


def structure_is_legal(subject: Subject) -> str | None:
    """Masks are bool, at the method's granularity, and only of layers it may touch."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        trial = Trial(subject.method(), toy)
        for _ in trial.develop():
            require_legal(trial)
    return None


def state_dict_is_that_of_the_dense_model(subject: Subject) -> str | None:
    """The same keys, shapes and types as before."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        trial = Trial(subject.method(), toy)
        dense = _layout(trial.model)
        for _ in trial.develop():
            require_same(dense, _layout(trial.model), f"{toy.name}: state_dict")
    return None


def model_stays_plain(subject: Subject) -> str | None:
    """Copies, pickles and what detaching leaves are plain modules without hooks, in the mode they had."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        trial = Trial(subject.method(), toy).run()
        plain = _inside(toy.model())
        watching = bool(trial.method.watch) or trial.method.edit is not None
        for how, model in {
            "in training": trial.model,
            "deepcopy": deepcopy(trial.model),
            "pickle": pickle.loads(pickle.dumps(trial.model)),
        }.items():
            # what watches the data has hooks on modules until it is detached
            wanted_inside, inside = (_unhooked(part) if watching else part for part in (plain, _inside(model)))
            require_same(wanted_inside, inside, f"{toy.name}, {how}: what the modules hold")
            require_same(trial.model.state_dict(), model.state_dict(), f"{toy.name}, {how}: weights")
        trial.finish()
        require_same(plain, _inside(trial.model), f"{toy.name}, after finish(): what the modules hold")
        left = len(trial.optimizer._optimizer_step_post_hooks) + len(trial.optimizer._optimizer_step_pre_hooks)
        require(not left, f"{toy.name}: wanted no hooks on the optimizer after finish(), got {left}")
    return None


def resumes_bitwise(subject: Subject) -> str | None:
    """Stopped and resumed from a checkpoint in new objects, it ends where it would have ended."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        straight = Trial(subject.method(), toy, optimizer=_ADAM).run()
        for stop in range(1, STEPS):
            first = Trial(subject.method(), toy, optimizer=_ADAM).run(stop)
            second = Trial(subject.method(), toy, optimizer=_ADAM)
            second.load_state_dict(deepcopy(first.state_dict()))
            for _ in second.develop():
                pass
            where = f"{toy.name}, stopped after {stop} of {STEPS} updates"
            require_same(straight.state_dict(), second.state_dict(), where)
    return None


def same_seed_same_network(subject: Subject) -> str | None:
    """Torch's global random state is neither used nor changed."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        first = Trial(subject.method(), toy).run()
        with torch.random.fork_rng(devices=[]):
            torch.rand(1)
            state = torch.get_rng_state()
            second = Trial(subject.method(), toy).run()
            unchanged = torch.equal(state, torch.get_rng_state())
        require(unchanged, f"{toy.name}: wanted draws from the topology's generator alone, got global ones")
        require_same(first.state_dict(), second.state_dict(), f"{toy.name}: two runs with the same seed")
    return None


def newborns_start_at_zero(subject: Subject) -> str | None:
    """A newborn's weight and optimizer state are 0, and no edit touches the optimizer state of a survivor."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        for edit in Trial(subject.method(), toy, optimizer=_ADAM).run().edits:
            for name, old in edit.before.masks.items():
                new, weight = edit.after.masks[name], edit.after.weights[name]
                where = f"{toy.name}, {name}, step {edit.step}"
                born, survived = (new & ~old).expand_as(weight), (new & old).expand_as(weight)
                require(not weight[born].any(), f"{where}: wanted newborn weights 0, got {weight[born]}")
                for key, value in edit.after.moments[name].items():
                    if value.shape != weight.shape:
                        continue
                    before = edit.before.moments[name][key][survived]
                    require(not value[born].any(), f"{where}: wanted {key} of newborns 0, got {value[born]}")
                    require_same(before, value[survived], f"{where}: {key} of survivors")
    return None


def ties_go_to_the_lowest_index(subject: Subject) -> str | None:
    """Where all scores are equal, the first connections stay: of the layer under `Density`, else of each unit."""
    method, cut = subject.method(), False
    step = next((step for step in range(1, STEPS + 1) if method.when(step)), 0)
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        groups = _groups_of_equals(method, toy)
        masks = method.rule(groups, step)
        for name in (group.weight.name for group in groups if group.weight.name in masks):
            rows = masks[name].flatten(1)
            bias = masks.get(f"{name.removesuffix('weight')}bias")
            rows = rows if bias is None else torch.cat([rows, bias.unsqueeze(1)], 1)
            free = isinstance(method.rule, Density) and isinstance(method.rule.structure, Weights)
            rows = rows.reshape(1, -1) if free else rows
            cut = cut or not bool(rows.all())
            first = bool((rows[:, 1:] <= rows[:, :-1]).all())
            require(first, f"{toy.name}, {name}: wanted the first of equal connections, got {rows}")
    return None if cut else "its rule cuts nothing where all scores are equal"


def extremes_are_met(subject: Subject) -> str | None:
    """One-row layers, a weight two layers share, a network without connections, densities 0 and 1."""
    method = subject.method()
    for toy in subject.toys(ONE_ROW, TIED):
        trial = Trial(subject.method(), toy).run()
        require_legal(trial)
        count, got = (len(list(model.parameters())) for model in (toy.model(), trial.model))
        require(got == count, f"{toy.name}: wanted {count} parameters, shared ones counted once, got {got}")
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        empty = Topology.of(layers_of(toy.model(), method.granularity), method.granularity, biases=method.biases)
        empty.edit({name: torch.zeros_like(mask) for name, mask in empty.masks.items()})
        require_legal(Trial(subject.method(), toy, topology=empty).run())
        for density in (0.0, 1.0) if "density" in method.options else ():
            trial = Trial(subject.method(density=density), toy).run()
            require_legal(trial)
            alive, total = counts(trial.topology.masks)
            count = round(density * total)
            require(alive == count, f"{toy.name}, density {density}: wanted {count} of {total}, got {alive}")
    return None


def amp_skips_do_not_count(subject: Subject) -> str | None:
    """An update that `GradScaler` skips for overflow leaves no trace, with fused optimizers and others."""
    if not subject.method().acts_in_training:
        return "it acts outside training"
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        for fused in (False, True):
            optimizer = partial(torch.optim.SGD, lr=0.25, fused=fused)
            smooth = Trial(subject.method(), toy, optimizer=optimizer).run()
            bumpy = Trial(subject.method(), toy, optimizer=optimizer)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for overflow in (False, True, *(False,) * (STEPS - 1)):
                bumpy.optimizer.zero_grad()
                factor = math.inf if overflow else 1.0
                scaler.scale(bumpy.loss(bumpy.inputs, bumpy.targets) * factor).backward()
                bumpy.update(partial(scaler.step, bumpy.optimizer))
                scaler.update()
            where = f"{toy.name}, {'fused' if fused else 'unfused'} optimizer, one update skipped"
            before, after = smooth.topology.state_dict(), bumpy.topology.state_dict()
            if subject.method().watch:  # data that flowed did flow, skipped or not; it must not change the masks
                before, after = ({**state, "state": {}} for state in (before, after))
            require_same(before, after, where)
            require_same(smooth.model.state_dict(), bumpy.model.state_dict(), where)
    return None


def pieces_of_a_batch_are_the_batch(subject: Subject) -> str | None:
    """Gradients or calibration data that come in pieces change nothing."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        whole, pieces = Trial(subject.method(), toy).run(), Trial(subject.method(), toy).run(parts=2)
        require_same(whole.topology.state_dict(), pieces.topology.state_dict(), f"{toy.name}: topology")
        require_same(whole.model.state_dict(), pieces.model.state_dict(), f"{toy.name}: weights")
    return None


def compiled_model_gets_the_same_masks(subject: Subject) -> str | None:
    """Under `torch.compile`, whose module names have a prefix."""
    for toy in subject.toys(DENSE, CONVOLUTIONAL):
        torch.compiler.reset()
        eager = Trial(subject.method(), toy).run()
        model = cast(nn.Module, torch.compile(toy.model(), backend="aot_eager"))
        compiled = Trial(subject.method(), toy, model=model).run()
        require_same(eager.topology.state_dict(), compiled.topology.state_dict(), f"{toy.name}: topology")
    return None


def half_precision_works(subject: Subject) -> str | None:
    """In bfloat16 and float16, as far as the CPU computes in them."""
    made = False
    for dtype in (torch.bfloat16, torch.float16):
        for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
            model = toy.model().to(dtype)
            if not _computes(model, toy.inputs.to(dtype)):
                continue
            # a small rate: nothing overflows, whatever the masks
            optimizer = partial(torch.optim.SGD, lr=2**-8)
            trial, made = Trial(subject.method(), toy, model=model, optimizer=optimizer).run(), True
            require_legal(trial)
            types = {parameter.dtype for parameter in model.parameters()}
            require(types == {dtype}, f"{toy.name}: wanted weights of {dtype}, got {types}")
    return None if made else "this CPU computes in neither of them"


def survivors_are_left_alone(subject: Subject) -> str | None:
    """No edit changes the weight of a survivor; only a rule with `grow` brings connections to life."""
    grows = getattr(subject.method().rule, "grow", None) is not None
    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL):
        for edit in Trial(subject.method(), toy).run().edits:
            for name, old in edit.before.masks.items():
                new, where = edit.after.masks[name], f"{toy.name}, {name}, step {edit.step}"
                both = (old & new).expand_as(edit.after.weights[name])
                before, after = edit.before.weights[name][both], edit.after.weights[name][both]
                require_same(before, after, f"{where}: weights of survivors")
                born = int((new & ~old).sum())
                require(grows or not born, f"{where}: wanted a rule without `grow` to prune only, got {born} born")
    return None


def repr_builds_it_again(subject: Subject) -> str | None:
    """`repr` is an expression over the registry's names, and options build the same method again."""
    for method in (subject.build(), subject.method()):
        for again in (eval(repr(method), {"__builtins__": {}}, METHODS), build(method.name, **method.options)):
            require(repr(again) == repr(method), f"wanted {method!r}, got {again!r}")
            require_same(method.options, again.options, "options")
    return None


def card_is_complete(subject: Subject) -> str | None:
    """The docstring: a sentence, rule, every option, when to use it and when not, paper, differences."""
    card = inspect.getdoc(subject.build) or ""
    summary, *rest = card.splitlines() or [""]
    require(summary.endswith(".") and not "".join(rest[:1]), f"wanted one sentence on the first line, got {summary!r}")
    parts = ("Rule:", "When to use it:", "When not:", "Paper:", "Differs:")
    options = inspect.signature(subject.build).parameters
    missing = [part for part in parts if not re.search(rf"(^|\. |\n){part}", card)]
    missing += [f"Args: {option}:" for option in options if not re.search(rf"\n +{option}: ", card)]
    require(not missing, f"the card lacks {', '.join(missing)}")
    return None


def golden_edits_come_out(subject: Subject) -> str | None:
    """Edits worked out by hand."""
    require(bool(subject.golden.cases), "wanted edits worked out by hand under [[edit]] in its golden file, got none")
    for case in subject.golden.cases:
        topology = replay(subject.build(**case.options), case)
        require_same(wanted(case, topology), topology.masks, f"{case.about!r}")
    return None


def engine_gives_the_same_outputs(subject: Subject) -> str | None:
    """The finished network, saved as a `.syn` file and run by the engine: within 1e-5 of the largest output."""
    if reason := _without_engine():
        return reason
    from synaptree.runtime.engine import Engine

    for toy in subject.toys(DENSE, CONVOLUTIONAL, RESIDUAL, ONE_ROW, TIED):
        trial = Trial(subject.method(), toy).run()
        trial.finish()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "network.syn"
            save(trial.model.eval(), path, example_input=trial.inputs, topology=trial.topology)
            y = torch.from_numpy(Engine(path, batch=len(trial.inputs))(trial.inputs.numpy()))
        with torch.no_grad():
            wanted = trial.model(trial.inputs)
        same = torch.allclose(y, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()) + 1e-12)
        require(same, f"{toy.name}: wanted the outputs {wanted}, got {y}")
    return None


def replicas_hold_the_same_masks(subject: Subject) -> str | None:
    """Two processes under `DistributedDataParallel` hold at each step what one process holds that sees all data."""
    return together.replicas(subject.method, tuple(subject.toys(DENSE, CONVOLUTIONAL)))


def shards_hold_the_same_masks(subject: Subject) -> str | None:
    """Two processes, each with a part of the parameters by `fully_shard`, hold what one process holds."""
    return together.shards(subject.method, tuple(subject.toys(DENSE, CONVOLUTIONAL)))


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        dead_weights_are_zero, counts_are_exact, structure_is_legal, state_dict_is_that_of_the_dense_model,
        model_stays_plain, resumes_bitwise, same_seed_same_network, newborns_start_at_zero,
        ties_go_to_the_lowest_index, extremes_are_met, amp_skips_do_not_count, pieces_of_a_batch_are_the_batch,
        compiled_model_gets_the_same_masks, half_precision_works, survivors_are_left_alone,
        repr_builds_it_again, card_is_complete, golden_edits_come_out, engine_gives_the_same_outputs,
        replicas_hold_the_same_masks, shards_hold_the_same_masks,
    )
}  # fmt: skip
"""Every check by its name: `Subject -> None`, or the reason why it does not apply."""


def _without_engine() -> str | None:
    """Return why the engine cannot be asked; None if it can."""
    try:
        from synaptree.runtime.engine import instruction_set
    except ModuleNotFoundError as missing:
        return f"the engine needs {missing.name}: pip install 'synaptree[pack]'"
    return "the engine was installed without its compiled kernels" if instruction_set() == "none" else None


def _promised(rule: Density, step: int, alive: int, total: int) -> int:
    """Return how many connections must exist after an edit of `alive` of `total`."""
    target = as_schedule(rule.target)(step)
    if rule.of_remaining:
        return alive - math.ceil((1 - target) * alive - 1e-9)
    return round(target * total) if rule.grow else min(alive, round(target * total))


def _groups_of_equals(method: Method, toy: Toy) -> list[Group]:
    """Return the groups of a rule, every score 1."""
    layers = layers_of(toy.model(), method.granularity)
    masks = Topology.of(layers, method.granularity, biases=method.biases).masks

    def part(name: str) -> Part:
        return Part(name, masks[name], {signal: torch.ones(masks[name].shape) for signal in method.signals})

    return [Group(la, part(la.weight), part(la.bias) if la.bias and la.bias in masks else None) for la in layers]


def _layout(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


def _inside(model: nn.Module) -> list[Any]:
    """Return what tells a plain module: types, attributes, hooks, and the mode it is in."""
    hooks = [key for key in vars(nn.Module()) if key.endswith("_hooks")]
    modules = [
        (name, type(module), sorted(vars(module)), module.training, [len(vars(module)[key]) for key in hooks])
        for name, module in model.named_modules()
    ]
    parameters = [
        (name, type(p), p.is_leaf, p.requires_grad, bool(p._backward_hooks)) for name, p in model.named_parameters()
    ]
    return [*modules, *parameters]


def _unhooked(inside: list[Any]) -> list[Any]:
    return [part[:-1] for part in inside]


def _computes(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x).sum().backward()
    except RuntimeError:
        return False
    model.zero_grad()
    return True
