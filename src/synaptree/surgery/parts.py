"""Children of a model that can be compacted on their own, where the model itself cannot be read."""

import linecache
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from synaptree.graph.shortcut import Shortcut
from synaptree.graph.trace import undisturbed

__all__ = ["Part", "Parts", "stopped"]

_ASKED_ONLY = {getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_cuda", "layout", "requires_grad")}


class Part(nn.Module):
    """One child of a model alone, under the name it has there.

    Args:
        model: whose child it is; the child is shared, not copied.
        name: of the child, as in `model.named_modules()`.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Tanh())
        >>> [name for name, _ in Part(model, "0").named_parameters()]
        ['0.0.weight', '0.0.bias']
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        *outer, last = name.split(".")
        place: nn.Module = self
        for step in outer:
            place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        place.add_module(last, model.get_submodule(name))
        self._name_in_the_model = name

    def forward(self, x: Tensor) -> Any:
        """Return what the child gives."""
        return self.get_submodule(self._name_in_the_model)(x)


class Parts:
    """What is called how, and used where, while a model runs.

    Args:
        model: any; it is run with hooks, which are gone afterwards.
        inputs: batches it accepts, which are run in eval mode.

    Attributes:
        examples: name of each child with two layers or more that was called with a tensor -> the largest batch.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.model = model
        self._watch = _Watch(model)
        for x in inputs:
            with undisturbed(model, x), _hooked(model, self._watch.called, self._watch.returned), self._watch:
                model(x.clone())
        self._names = {module: name for name, module in model.named_modules()}
        self.examples = {self._names[module]: x for module, x in self._watch.examples.items()}

    def below(self, name: str) -> list[str]:
        """Return the children of a child in which units can be, those with two layers or more."""
        module = self.model.get_submodule(name)
        return [] if _is_closed(module) else [self._names[m] for m in module.children() if _layers_in(m) > 1]

    def objection(self, name: str) -> str:
        """Return why a child may not be narrowed on its own; nothing where it may.

        It may where every call of it passes one tensor, of one type and of one shape but for the batch, and gives
        tensors back, where it has no hooks and shares no parameter with what is outside it, and where nothing
        outside uses one of its parameters or calls one of its modules.
        """
        child = self.model.get_submodule(name)
        parts = set(child.modules())
        outside = [module for module in self.model.modules() if module not in parts]
        own, others = _held(parts), {id(tensor) for tensor in _held(outside)}
        if _is_closed(child):
            return "its forward is torch's own"
        if why := self._watch.odd_calls(child):
            return why
        if any(_has_hooks(part) for part in parts):
            return "modules in it have hooks"
        if any(id(tensor) in others for tensor in own):
            return "it shares parameters with modules outside it"
        if any(part in parts and part is not child for module in outside for part in module.children()):
            return "modules in it also belong to modules outside it"
        if any(child not in self._watch.within.get(id(one), {child}) for one in (*parts, *own)):
            return "modules or parameters in it are used from outside it"
        return ""

    def is_container(self, name: str) -> bool:
        """Return whether a child has no forward of its own."""
        return isinstance(self.model.get_submodule(name), nn.ModuleList | nn.ModuleDict)


def stopped(error: Exception) -> str:
    """Return an error's message and the line of the model's own code in which tracing stopped."""
    cause = error.__cause__
    steps = [] if cause is None else [(frame, line) for frame, line in walk_tb(cause.__traceback__)]
    own = [(frame.f_code, line) for frame, line in steps if not _is_machinery(frame.f_globals.get("__name__"))]
    values = [frame.f_locals.get("self") for frame, _ in steps]
    operation = next((value.node.name for value in reversed(values) if isinstance(value, fx.Proxy)), "")
    at = f" at operation {operation!r}" if operation else ""
    if own:
        code, line = own[-1]
        text = linecache.getline(code.co_filename, line).strip()
        at += f" in {code.co_name}, {Path(code.co_filename).name} line {line}" + (f": {text}" if text else "")
    return f"{error}. It stopped{at}" if at else str(error)


def _is_machinery(module: str | None) -> bool:
    own = ("torch.", "beartype.", "synaptree.graph.", "synaptree.surgery.")
    return module is None or f"{module}.".startswith(own)


def _layers_in(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Linear | _ConvNd | Shortcut) for part in module.modules())


def _is_closed(module: nn.Module) -> bool:
    """Return whether a module's code is torch's, which may read the parameters of its children by itself."""
    own = _is_compiled(module) or str(type(module).forward.__module__).startswith("torch.nn")
    return own and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule"


class _Watch(TorchFunctionMode):
    """Notes what every module is called with, and within which modules everything is used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.inside: list[nn.Module] = []
        self.within: dict[int, set[nn.Module]] = {}  # a module's or tensor's id to those around all of its uses
        self.tensors = {id(tensor) for tensor in _held(model.modules())}
        self.forms: dict[nn.Module, set[object]] = {}
        self.examples: dict[nn.Module, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ASKED_ONLY:
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.tensors:
                    self._used(leaf)
        return func(*args, **kwargs)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inside.append(module)
        self._used(module)
        x: Any = args[0] if len(args) == 1 and not kwargs else None
        fits = isinstance(x, Tensor) and x.dim() > 0
        self.forms.setdefault(module, set()).add((x.dtype, x.device, x.shape[1:]) if fits else "odd")
        largest = len(self.examples[module]) if module in self.examples else 0
        if fits and len(x) > largest and _layers_in(module) > 1:
            self.examples[module] = x.detach().clone()

    def returned(self, module: nn.Module, _: object, output: object) -> None:
        while self.inside.pop() is not module:
            pass  # a call that was broken off
        leaves = tree_leaves(output)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            self.forms[module].add("no tensors")

    def odd_calls(self, child: nn.Module) -> str:
        """Return what is wrong with how a module is called; nothing where one kind of tensor gives tensors."""
        forms = self.forms.get(child, set())
        if "odd" in forms:
            return "it is called with something else than one tensor"
        if child not in self.examples:
            return "it was not called"
        if "no tensors" in forms:
            return "it gives something else than tensors"
        return "it is called with inputs of several shapes or types" if len(forms) > 1 else ""

    def _used(self, one: object) -> None:
        around = set(self.inside)
        self.within[id(one)] = self.within.get(id(one), around) & around


@contextmanager
def _hooked(model: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    with ExitStack() as hooks:
        compiled = {part for module in model.modules() if _is_compiled(module) for part in module.modules()}
        for module in model.modules():
            if module not in compiled:
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after, always_call=True))
        yield


def _held(modules: Iterable[nn.Module]) -> list[Tensor]:
    found = (tensor for m in modules for tensor in (*m._parameters.values(), *m._buffers.values()))
    return [tensor for tensor in found if tensor is not None]


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)
