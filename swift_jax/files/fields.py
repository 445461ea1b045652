"""The fields of our JSON files: their types, and errors that name a field.

pydantic checks them. The types are strict: 1 is no boolean, and '1' no number.
"""

from __future__ import annotations

from collections.abc import Callable
import re
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field
import pydantic_core

from swift_jax.config.checks import MAX_INT
from swift_jax.errors import InputError

T = TypeVar('T')
Natural = Annotated[int, Field(ge=1, le=MAX_INT)]
Count = Annotated[int, Field(ge=0, le=MAX_INT)]


def bad(where: str, name: str, value: Any, wanted: str) -> InputError:
  """The error for a field's wrong value, as the file has it."""
  value = list(value) if isinstance(value, tuple) else value
  return InputError(f'{where}: {name}={value!r:.60}: expected {wanted}')


def meets(
  is_valid: Callable[[Any], bool], wanted: str
) -> pydantic.AfterValidator:
  """A further condition for a type, and the words for it in errors."""

  def check(value: T) -> T:
    if not is_valid(value):
      raise pydantic_core.PydanticCustomError('meets', wanted)
    return value

  return pydantic.AfterValidator(check)


def matches(pattern: str, wanted: str) -> pydantic.AfterValidator:
  """The condition that a text is wholly of a pattern."""
  return meets(re.compile(pattern).fullmatch, wanted)


# The form that `checkpoint.load.fingerprint` returns.
Fingerprint = Annotated[str, matches('[0-9a-f]{16}', '16 hexadecimal digits')]


def parse_json(
  kind: pydantic.TypeAdapter[T], text: str | bytes, where: str
) -> T:
  """The value that a JSON text holds.

  Raises:
    InputError: names `where`, the field and its value.
  """
  try:
    return kind.validate_json(text, strict=True)
  except pydantic.ValidationError as error:
    fault = error.errors(include_url=False)[0]
  told, found = fault.get('ctx', {}), fault['input']
  if fault['type'] == 'json_invalid':
    raise InputError(f'{where}: not JSON: {told["error"]}')
  name = ''.join(
    f'.{part}' if str(part).isidentifier() else f'[{part!r:.60}]'
    for part in fault['loc']
  ).lstrip('.')
  if fault['type'] == 'missing':
    raise InputError(f'{where}: {name!r} is missing')
  if fault['type'] == 'unexpected_keyword_argument':
    raise InputError(f'{where}: {name!r:.60} is no field of the form')
  wanted = {
    'greater_than_equal': f'a number >= {told.get("ge")}',
    'less_than_equal': f'a number <= {told.get("le")}',
    'too_short': 'a filled list',
  }.get(fault['type'], fault['msg'].removeprefix('Input should be '))
  if not name:
    raise InputError(f'{where}: expected {wanted}, found {found!r:.60}')
  raise bad(where, name, found, wanted)
