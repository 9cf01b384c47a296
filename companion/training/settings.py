"""Frozen descriptions with a canonical form: two that mean the same are equal and have one key."""

import dataclasses
import numbers
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from companion.errors import CompanionError, choose


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an augmentation, a method and a run have in common: fields with defaults, checked once, never changed.

    A field that is declared ``float`` holds a float, so that 30, 30.0 and a tensor of it are one value; a whole number
    of NumPy's becomes an ``int``.
    """

    name: ClassVar[str] = ""  #: under which a registry knows it
    unlabelled: ClassVar[bool] = False  #: of a method: whether it trains on images without a label too

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, bool):
                continue
            if field.type in (float, "float") and isinstance(value, numbers.Real):
                object.__setattr__(self, field.name, float(value))
            elif isinstance(value, numbers.Integral):
                object.__setattr__(self, field.name, int(value))
        self.validate()

    def validate(self) -> None:
        """Raise a :class:`~companion.errors.CompanionError` if a value is outside its range."""

    def fit(self, batch_size: int):
        """Of a method: the same for batches of this size, or a :class:`~companion.errors.CompanionError`."""
        return self

    def replace(self, **changes):
        """A copy with some values changed.

        Raises:
            CompanionError: for a name that is no field, or a value outside its range.
        """
        for name in changes:
            choose(name, [f.name for f in dataclasses.fields(self)], "parameter")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """All values by name, for JSON; nested settings are dictionaries with their ``name``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {name: v.to_dict() if isinstance(v, Settings) else v for name, v in values.items()}
        return ({"name": self.name} if self.name else {}) | values

    def changed(self) -> dict:
        """The same without the values that are their defaults: a field that is added later changes no old key."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        values = {name: v.changed() if isinstance(v, Settings) else v for name, v in values.items()}
        return ({"name": self.name} if self.name else {}) | values


def from_dict(values: dict, registry: dict[str, type[Settings]], what: str) -> Settings:
    """The settings that :meth:`Settings.to_dict` described.

    Raises:
        CompanionError: for an unknown name, a field that does not exist, or a value outside its range.
    """
    if not isinstance(values, dict) or "name" not in values:
        raise CompanionError(f"{what} is {values!r}: expected a dictionary with a name.")
    cls = registry[choose(values["name"], registry, what)]
    arguments = {name: value for name, value in values.items() if name != "name"}
    for name in arguments:
        choose(name, [f.name for f in dataclasses.fields(cls)], f"argument of {what} {values['name']!r}")
    return cls(**arguments)
