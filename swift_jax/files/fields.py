"""What is valid in the fields of our files, whichever the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import re
from typing import Any

from swift_jax.config.checks import MAX_INT
from swift_jax.errors import InputError

Valid = Callable[[Any], bool]
Fields = Mapping[str, tuple[Valid, str]]  # what is valid, and how that is said


def bad(where: str, name: str, value: Any, wanted: str) -> InputError:
  """What to say of a field's value."""
  return InputError(f'{where}: {name}={value!r:.60}: expected {wanted}')


def check(fields: Mapping[str, Any], known: Fields, where: str) -> None:
  """Refuses an object that lacks a field or has a wrong value there."""
  for name, (is_valid, wanted) in known.items():
    if name not in fields:
      raise InputError(f'{where}: {name!r} is missing')
    if not is_valid(fields[name]):
      raise bad(where, name, fields[name], wanted)


def is_int(value: Any, low: int) -> bool:
  """An integer, no boolean, in [low, MAX_INT]."""
  return type(value) is int and low <= value <= MAX_INT


def is_fingerprint(value: Any) -> bool:
  """What `checkpoint.load.fingerprint` gives."""
  return isinstance(value, str) and bool(re.fullmatch('[0-9a-f]{16}', value))
