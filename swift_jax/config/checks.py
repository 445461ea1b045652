"""Checks of settings: every error names the field and the value that came in."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from swift_jax.errors import InputError

MAX_INT = 2**28  # sums of a few of them are still int32


def require(ok: bool, name: str, value: object, wanted: str) -> None:
  """Raises an error that names a setting and its value unless it is `ok`."""
  if not ok:
    raise InputError(f'{name}={value!r}: expected {wanted}')


def require_int(name: str, value: Any, low: int) -> None:
  """Refuses what is no integer in [low, MAX_INT]."""
  is_int = isinstance(value, int) and not isinstance(value, bool)
  require(is_int and value >= low, name, value, f'an integer >= {low}')
  require(value <= MAX_INT, name, value, f'an integer <= {MAX_INT}')


def as_tuple(cfg: Any, section: str, name: str) -> None:
  """Makes a list a tuple, so that the settings are hashable."""
  value = getattr(cfg, name)
  ok = isinstance(value, (list, tuple))
  require(ok, f'{section}.{name}', value, 'a tuple')
  object.__setattr__(cfg, name, tuple(value))


def require_number(name: str, value: Any, low: float, high: float) -> None:
  """Refuses what is no finite number in [low, high]."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  ok = is_number and math.isfinite(value) and low <= value <= high
  wanted = f'a number >= {low}' if high == math.inf else f'in [{low}, {high}]'
  require(ok, name, value, wanted)


def require_bool(name: str, value: object) -> None:
  """Refuses what is no boolean."""
  require(isinstance(value, bool), name, value, 'a boolean')


def require_text(name: str, value: object) -> None:
  """Refuses half a character, as \\ud83d alone, wherever in `value` it stands.

  JSON can hold one, and Python makes them of bytes that are no UTF-8; no tokenizer
  and no file takes them.

  Args:
    value: a string, or lists and mappings with strings in them; what else is in
      them is let through.
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
    for key, part in value.items():
      require_text(f'{name}, a key', key)
      require_text(f'{name}[{key!r}]', part)
  elif isinstance(value, (list, tuple)):
    for i, part in enumerate(value):
      require_text(f'{name}[{i}]', part)
