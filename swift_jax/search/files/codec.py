"""A search's state to JSON's types and back; a pickle could run code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_ARRAY = 'array'


def encode(value: Any) -> Any:
  """Encodes numbers, strings, None, arrays, lists and dictionaries of these."""
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
  """The value that `encode` was given, with lists in place of tuples.

  Raises:
    KeyError, TypeError, ValueError: `encode` cannot have made this.
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
  """Sets attributes to values of the same kind as their old values.

  Raises:
    KeyError, TypeError, ValueError: a value is missing, or of another kind,
      shape or type, or a negative number: counts, shares and times are never
      negative.
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
  """Refuses items that are not of the example's kind, shape and type.

  Args:
    name: what errors call the items.
    example: if it is a list, every item must be a list whose elements are like
      the example's, one by one.

  Raises:
    TypeError, ValueError: an item has another form.
  """
  for item in items:
    pairs = [(example, item)]
    if isinstance(example, list):
      pairs = zip(example, item, strict=True)
    if not all(_is_alike(old, new) for old, new in pairs):
      raise TypeError(f'{name} holds an item of another form')


def _is_alike(old: Any, new: Any) -> bool:
  """Whether two values have the same type, and arrays the same shape."""
  if isinstance(old, np.ndarray):
    is_array = isinstance(new, np.ndarray)
    return is_array and (old.shape, old.dtype) == (new.shape, new.dtype)
  return type(old) is type(new)


def _finite(number: Any) -> Any:
  """-inf as None: JSON lacks -inf, our only number that is not finite."""
  return None if number == -np.inf else number
