"""Checks of the fields of JSON files, the same for all of our files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import re
from typing import Any

from swift_jax.config.checks import MAX_INT
from swift_jax.errors import InputError

Valid = Callable[[Any], bool]
# For each field's name: its check, and the values that it accepts, in words.
Fields = Mapping[str, tuple[Valid, str]]


def bad(where: str, name: str, value: Any, wanted: str) -> InputError:
  """The error for a field's wrong value."""
  return InputError(f'{where}: {name}={value!r:.60}: expected {wanted}')


def check(fields: Mapping[str, Any], known: Fields, where: str) -> None:
  """Refuses an object that lacks a known field or has a wrong value in it."""
  for name, (is_valid, wanted) in known.items():
    if name not in fields:
      raise InputError(f'{where}: {name!r} is missing')
    if not is_valid(fields[name]):
      raise bad(where, name, fields[name], wanted)


def is_int(value: Any, low: int) -> bool:
  """Whether a value is an integer in [low, MAX_INT]; a boolean is not."""
  return type(value) is int and low <= value <= MAX_INT


def is_fingerprint(value: Any) -> bool:
  """Whether a value has the form that `checkpoint.load.fingerprint` returns."""
  return isinstance(value, str) and bool(re.fullmatch('[0-9a-f]{16}', value))
