"""A search's state as JSON has it, and back: no pickle, which would run code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_ARRAY = 'array'


def encode(value: Any) -> Any:
  """Numbers, strings, None, arrays, and lists and dictionaries of these."""
  if isinstance(value, np.ndarray):
    flat = value.astype(int) if value.dtype == bool else value
    numbers = [_finite(number) for number in flat.ravel().tolist()]
    return {_ARRAY: numbers, 'shape': value.shape, 'dtype': str(value.dtype)}
  if isinstance(value, dict):
    return {str(key): encode(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [encode(item) for item in value]
  return value


def decode(value: Any) -> Any:
  """What `encode` was given; tuples are lists.

  Raises:
    KeyError, TypeError, ValueError: it was not given this.
  """
  if isinstance(value, float) and not np.isfinite(value):
    raise ValueError(f'{value} is no number')
  if isinstance(value, dict) and _ARRAY in value:
    numbers = [-np.inf if n is None else decode(n) for n in value[_ARRAY]]
    return np.array(numbers, value['dtype']).reshape(value['shape'])
  if isinstance(value, dict):
    return {key: decode(item) for key, item in value.items()}
  if isinstance(value, list):
    return [decode(item) for item in value]
  return value


def replace_fields(target: Any, names: tuple[str, ...], values: Any) -> None:
  """Sets attributes, each refused unless it is of the kind that is there.

  Raises:
    KeyError, TypeError, ValueError: one is missing, of another kind, shape or
      type, or a negative number: no count, share or time is.
  """
  for name in names:
    old, new = getattr(target, name), values[name]
    if isinstance(old, float) and type(new) is int:
      new = float(new)
    if old is not None and not _is_alike(old, new):
      raise TypeError(f'{name} has another form')
    if isinstance(new, (int, float)) and new < 0:
      raise ValueError(f'{name}={new}: expected a number >= 0')
    setattr(target, name, new)


def check_items(name: str, items: Iterable[Any], example: Any) -> None:
  """Refuses items that are not of an example's kind, shape and type.

  Args:
    example: where it is a list, so is every item, with parts as it has.

  Raises:
    TypeError, ValueError: names whose items they are.
  """
  for item in items:
    pairs = [(example, item)]
    if isinstance(example, list):
      pairs = zip(example, item, strict=True)
    if not all(_is_alike(old, new) for old, new in pairs):
      raise TypeError(f'{name} holds an item of another form')


def _is_alike(old: Any, new: Any) -> bool:
  if isinstance(old, np.ndarray):
    is_array = isinstance(new, np.ndarray)
    return is_array and (old.shape, old.dtype) == (new.shape, new.dtype)
  return type(old) is type(new)


def _finite(number: Any) -> Any:
  """JSON has no -inf, the one number of ours that is not finite."""
  return None if number == -np.inf else number
