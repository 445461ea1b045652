"""Checks of settings: every error names the field and the value that came in."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from swift_jax.errors import InputError

MAX_INT = 2**28  # the sum of a few such numbers still fits int32


def require(ok: bool, name: str, value: object, wanted: str) -> None:
  """Raises an error that names the setting and its value unless `ok` is true."""
  if not ok:
    raise InputError(f'{name}={value!r}: expected {wanted}')


def require_int(name: str, value: Any, low: int) -> None:
  """Refuses a value that is not an integer in [low, MAX_INT]."""
  is_int = isinstance(value, int) and not isinstance(value, bool)
  require(is_int and value >= low, name, value, f'an integer >= {low}')
  require(value <= MAX_INT, name, value, f'an integer <= {MAX_INT}')


def as_tuple(cfg: Any, section: str, name: str) -> None:
  """Turns a field's list into a tuple, so that the settings are hashable."""
  value = getattr(cfg, name)
  ok = isinstance(value, (list, tuple))
  require(ok, f'{section}.{name}', value, 'a tuple')
  object.__setattr__(cfg, name, tuple(value))


def require_number(name: str, value: Any, low: float, high: float) -> None:
  """Refuses a value that is not a finite number in [low, high]."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  ok = is_number and math.isfinite(value) and low <= value <= high
  wanted = f'a number >= {low}' if high == math.inf else f'in [{low}, {high}]'
  require(ok, name, value, wanted)


def require_bool(name: str, value: object) -> None:
  """Refuses a value that is not a boolean."""
  require(isinstance(value, bool), name, value, 'a boolean')


def require_text(name: str, value: object) -> None:
  """Refuses half a character (a lone surrogate such as \\ud83d) in any string.

  JSON can hold half a character, and Python makes halves of bytes that are not
  UTF-8. No tokenizer and no file takes them.

  Args:
    value: a string, or lists and mappings that hold strings. Values of other
      types are not checked.
  """
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:
      around = value[max(error.start - 20, 0) : error.end + 20]
      raise InputError(
        f'{name}={around!r:.80}: expected whole characters'
      ) from None
  elif isinstance(value, Mapping):
    for key, item in value.items():
      require_text(f'{name}, a key', key)
      require_text(f'{name}[{key!r}]', item)
  elif isinstance(value, (list, tuple)):
    for i, item in enumerate(value):
      require_text(f'{name}[{i}]', item)
