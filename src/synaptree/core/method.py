"""Methods: a few orthogonal values under a name, and the registry that finds them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from synaptree.core.errors import OptionError, unknown
from synaptree.core.rule import Rule
from synaptree.core.schedule import Never
from synaptree.core.signal import Signal

__all__ = ["METHODS", "Method", "build", "method"]

P = ParamSpec("P")


@dataclass(frozen=True, repr=False)
class Method:
    """How a network's connections come and go.

    Attributes:
        rule: how scores become masks.
        signals: what is observed, by the name the rule knows it under.
        when: step -> bool, during training; `Never` for a method that acts only through `prune`.
        granularity: of the masks, by kind of layer; kinds left out are not touched.
        biases: whether biases are connections too.
        edit: a calibrated edit of its own, in place of one pass of the rule; called with a `Calibration`.
        name: in the registry.
        options: what it was built with.
    """

    rule: Rule
    signals: Mapping[str, Signal]
    when: Callable[[int], bool] = field(default_factory=Never)
    granularity: Mapping[str, str] = field(default_factory=lambda: {"linear": "weight", "conv": "weight"})
    biases: bool = False
    edit: Callable[[Any], None] | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """What the signals need: "data", "gradient"."""
        return frozenset().union(*(signal.needs for signal in self.signals.values()))

    def __repr__(self) -> str:
        return f"{self.name or 'Method'}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


METHODS: dict[str, Callable[..., Method]] = {}
"""Every registered method: name -> the function that builds it from its options."""


def method(build_method: Callable[P, Method]) -> Callable[P, Method]:
    """Register a function that builds a `Method`; its name and docstring are the method's name and card."""
    name = build_method.__name__
    signature = inspect.signature(build_method)

    @wraps(build_method)
    def registered(*args: P.args, **kwargs: P.kwargs) -> Method:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            strange = [key for key in kwargs if key not in signature.parameters]
            if strange:
                raise unknown(f"option of {name}", strange[0], signature.parameters) from None
            raise OptionError(f"{name}{signature}: got {args!r} {kwargs!r}") from None
        bound.apply_defaults()
        return replace(build_method(*args, **kwargs), name=name, options=dict(bound.arguments))

    if name in METHODS:
        raise OptionError(f"two methods are called {name!r}; a name is given once")
    METHODS[name] = registered
    return registered


def build(name: str, **options: Any) -> Method:
    """Return the registered method `name` built with `options`.

    Raises:
        OptionError: nobody knows the name or an option.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](**options)
