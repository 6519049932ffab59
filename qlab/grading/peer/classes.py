"""Which records and functions cross the border under their own names: qlab's own, and functions of torch."""

import dataclasses
import enum
import importlib
import sys
import types
from typing import Any

import numpy as np

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)
PLACES = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.fft")
KINDS = "biufc"
NARROW = (  # the types of ml_dtypes
    *("bfloat16", "int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


def _under(module: Any, *roots: str) -> bool:
    return type(module) is str and any(module == root or module.startswith(f"{root}.") for root in roots)


def name_of(thing: Any) -> str:
    """Return a class's or function's module and qualified name."""
    return f"{thing.__module__}:{thing.__qualname__}"


def found(name: str, *, importing: bool = False) -> Any:
    """Return what a name under qlab or torch stands for, or None."""
    module, _, path = name.partition(":")
    if not _under(module, "qlab", "torch"):
        return None
    if importing and module not in sys.modules and _under(module, "qlab.checks"):
        importlib.import_module(module)
    thing: Any = sys.modules.get(module)
    for step in path.split("."):
        thing = vars(thing).get(step) if isinstance(thing, type | types.ModuleType) else None
    return thing


def public_name(function: Any) -> str:
    """Return the name under which the sandbox finds the judge's function, or nothing if it is no module's own."""
    if not isinstance(function, FUNCTIONS):
        return ""
    name = getattr(function, "__name__", "")
    own = f"{function.__module__}:{getattr(function, '__qualname__', '')}"
    names = [own, *(f"{place}:{name}" for place in PLACES)]
    return next((name for name in names if found(name) is function), "")


def is_record(cls: type) -> bool:
    """Tell whether instances are plain records of qlab: a frozen dataclass, an enumeration, a named tuple."""
    if not _under(cls.__module__, "qlab") or found(name_of(cls)) is not cls:
        return False
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    return frozen or issubclass(cls, enum.Enum) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))


def is_reply(cls: type) -> bool:
    """Tell whether instances are records of the checks, which is what their drivers return."""
    return _under(cls.__module__, "qlab.checks") and is_record(cls)


def fields_of(value: Any) -> tuple[Any, ...]:
    """Return what a record is rebuilt from."""
    if isinstance(value, enum.Enum):
        return (value.name,)
    if isinstance(value, tuple):
        return tuple(value)
    return tuple(getattr(value, field.name) for field in dataclasses.fields(value))


def rebuilt(name: str, fields: Any, *, trusted: bool) -> Any:
    """Rebuild a record without running any of its class's own code.

    Errors:  ValueError if the class is none of qlab's records, or the fields are not its own.
    """
    cls = found(name, importing=not trusted)
    allowed = is_reply if trusted else is_record
    if not isinstance(cls, type) or not allowed(cls) or type(fields) is not tuple:
        raise ValueError(f"no record is called {name[:80]}")
    if issubclass(cls, enum.Enum):
        return cls[fields[0]]
    names = cls._fields if issubclass(cls, tuple) else [field.name for field in dataclasses.fields(cls)]
    if len(names) != len(fields):
        raise ValueError(f"{name} has {len(names)} fields, {len(fields)} came")
    if issubclass(cls, tuple):
        return tuple.__new__(cls, fields)
    record = object.__new__(cls)
    for key, value in zip(names, fields, strict=True):
        object.__setattr__(record, key, value)
    return record


def dtype_name(dtype: np.dtype) -> str:
    """Name a NumPy type of numbers, or return nothing for any other."""
    if dtype.name in NARROW:
        return dtype.name
    return dtype.str if dtype.kind in KINDS else ""


def dtype_named(name: str) -> np.dtype:
    """Return the NumPy type of this name.

    Errors:  ValueError if it is none of numbers.
    """
    if name in NARROW:
        import ml_dtypes  # noqa: PLC0415 - only where such numbers come by

        return np.dtype(getattr(ml_dtypes, name))
    if len(name) > 4 or name[:1] not in ("<", ">", "|", "=") or name[1:2] not in tuple(KINDS):
        raise ValueError(f"no NumPy type is called {name[:40]!r}")
    return np.dtype(name)
