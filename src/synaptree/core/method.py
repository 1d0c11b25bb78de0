"""Methods: a few orthogonal values under a name, and the registry that finds them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from inspect import formatannotation, signature
from types import UnionType
from typing import Any, Literal, ParamSpec, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

from torch import Tensor, nn

from synaptree.core.errors import AttachError, OptionError, unknown
from synaptree.core.layer import Layer, mask_shape
from synaptree.core.probe import Reduction
from synaptree.core.rule import Rule
from synaptree.core.schedule import Never
from synaptree.core.signal import Signal
from synaptree.core.topology import Delta, Topology

__all__ = ["METHODS", "Method", "Site", "build", "method", "require_method"]

P = ParamSpec("P")


@runtime_checkable
class Site(Protocol):
    """Where an edit takes place: a `Calibration` outside training, an `Attached` in it.

    Attributes:
        model: without gradients.
        method: what decides.
        topology: changed by `edit`.
        layers: those that may be touched.
        inputs: batches of inputs of shape `(samples, ...)`; in training one sample, for methods with an `edit`.
    """

    model: nn.Module
    method: Any
    topology: Topology
    layers: tuple[Layer, ...]
    inputs: list[Tensor]

    def masks(
        self, layers: Sequence[Layer] | None = None, stats: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Return what the method's rule says of `layers`, all by default; nothing is changed yet."""

    def edit(self, masks: Mapping[str, Tensor]) -> Delta:
        """Change the topology; weights that no longer exist become 0, newborn ones start at 0."""


@dataclass(frozen=True, repr=False)
class Method:
    """How a network's connections come and go.

    Attributes:
        rule: how scores become masks.
        signals: what is observed, by the name the rule knows it under.
        when: step -> bool, during training; `Never` for a method that acts only through `prune`.
        granularity: of the masks, by kind of layer: "weight", "kernel" or "unit"; kinds left out are not touched.
        biases: whether biases are connections too.
        edit: an edit of its own, in place of one pass of the rule; called with a `Site`.
        start: what it makes of a network that has no topology yet, when it is attached; called with a `Site`.
        name: in the registry.
        options: what it was built with.
    """

    rule: Rule
    signals: Mapping[str, Signal]
    when: Callable[[int], bool] = field(default_factory=Never)
    granularity: Mapping[str, str] = field(default_factory=lambda: {"linear": "weight", "conv": "weight"})
    biases: bool = False
    edit: Callable[[Any], None] | None = None
    start: Callable[[Any], None] | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for granularity in self.granularity.values():
            mask_shape((), granularity)

    @property
    def acts_in_training(self) -> bool:
        """Whether it has a schedule, so that `attach` runs it; else `prune` does."""
        return not isinstance(self.when, Never)

    @property
    def needs(self) -> frozenset[str]:
        """What the signals need: "data", "gradient"."""
        return frozenset().union(*(signal.needs for signal in self.signals.values()))

    @property
    def watch(self) -> dict[str, Reduction]:
        """What the signals want to know of what flows through the layers."""
        return {name: reduce for signal in self.signals.values() for name, reduce in signal.watch.items()}

    def __repr__(self) -> str:
        return f"{self.name or 'Method'}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


def require_method(model: object, method: object) -> None:
    """Raise an AttachError unless they are a module and a method, or None in the place of the method."""
    if not isinstance(model, nn.Module):
        raise AttachError(f"wanted a torch module to act on, got {type(model).__name__}: the model comes first")
    if method is not None and not isinstance(method, Method):
        raise AttachError(
            f"wanted a Method, got {method!r} of type {type(method).__name__}: build one, as synaptree.build('rigl')"
        )


METHODS: dict[str, Callable[..., Method]] = {}
"""Every registered method: name -> the function that builds it from its options."""


def method(build_method: Callable[P, Method]) -> Callable[P, Method]:
    """Register a function that builds a `Method`; its name and docstring are the method's name and card.

    Options are checked against the function's type hints when it is called.
    """
    name = build_method.__name__
    declared, hints = signature(build_method), get_type_hints(build_method)

    @wraps(build_method)
    def registered(*args: P.args, **kwargs: P.kwargs) -> Method:
        if strange := [key for key in kwargs if key not in declared.parameters]:
            raise unknown(f"option of {name}", strange[0], declared.parameters)
        try:
            bound = declared.bind(*args, **kwargs)
        except TypeError:
            raise OptionError(f"{name}{declared}: got {args!r} {kwargs!r}") from None
        bound.apply_defaults()
        for option, value in bound.arguments.items():
            if not _fits(value, hint := hints.get(option, Any)):
                if get_origin(hint) is Literal:
                    raise unknown(f"{option} of {name}", value, get_args(hint))
                got = f"{option} = {value!r} of type {type(value).__name__}"
                raise OptionError(f"{name}: wanted {option} of type {formatannotation(hint)}, got {got}")
        return replace(build_method(*args, **kwargs), name=name, options=dict(bound.arguments))

    if name in METHODS:
        raise OptionError(f"two methods are called {name!r}; a name is given once")
    METHODS[name] = registered
    return registered


def build(name: str, **options: Any) -> Method:
    """Return the registered method `name` built with `options`.

    Raises:
        OptionError: nobody knows the name or an option, or an option has a value of the wrong type.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](**options)


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is of a type: a class, a choice of values or types, or a mapping."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Mapping and isinstance(value, Mapping):
        return all(_fits(key, args[0]) and _fits(item, args[1]) for key, item in value.items())
    wanted = (float, int) if hint is float else origin or hint
    if hint is Any or not isinstance(wanted, (type, tuple)):
        return True
    return isinstance(value, wanted) and (hint not in (int, float) or not isinstance(value, bool))
