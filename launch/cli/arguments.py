"""Reads the command line before the flag library does: its config and its fields."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
import difflib
import re
import warnings

from ml_collections import ConfigDict

from swift_jax.errors import InputError

# Flags whose values are texts with escapes; see `unescaped`.
_TEXT_FLAGS = ('config.sampling.stop_strings',)
_ESCAPE = re.compile(
  r'\\(?:[\\\'"abfnrtv\n]|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}'
  r'|U[0-9a-fA-F]{8}|N\{[^}]*\}|[xuUN])'
)


def check_fields(
  argv: Sequence[str], config: ConfigDict, bare: Collection[str]
) -> None:
  """Refuses an unknown field, by the name that was typed.

  The flag library would only raise an exception.

  Args:
    bare: names of the fields that stand in no section.

  Raises:
    InputError: a field is unknown.
  """
  for argument in argv[1:]:
    if argument == '--':
      return
    flag = argument.partition('=')[0].lstrip('-')
    prefix, _, path = flag.partition('.')
    if prefix not in ('config', 'noconfig') or not argument.startswith('-'):
      continue
    name, dot, field = path.partition('.')
    if name in bare:
      is_known = not dot
    else:
      is_known = name in config and field in config[name]
    if not is_known:
      near = difflib.get_close_matches(path, _paths(config, bare), 1)
      advice = f'did you mean {near[0]}?' if near else '--help lists them'
      raise InputError(f'{argument}: the config has no such field; {advice}')


def _paths(config: ConfigDict, bare: Collection[str]) -> list[str]:
  """The names of all fields, such as `draft.tree`."""
  sections = config.to_dict().items()
  return [*bare] + [
    f'{name}.{field}'
    for name, fields in sections
    if name not in bare
    for field in fields
  ]


def unescaped(flag: str, text: str) -> str:
  """Decodes Python's escapes in a text of the command line: \\n is a line break.

  A backslash that begins no escape stays.

  Args:
    flag: the flag that errors name.

  Raises:
    InputError: an escape is not complete, such as \\x4.
  """

  def character(found: re.Match[str]) -> str:
    try:
      return ast.literal_eval(f'"{found[0]}"')
    except SyntaxError:
      raise InputError(
        f'{flag}={text!r:.80}: {found[0]} is no whole escape; a backslash is'
        ' written \\\\'
      ) from None

  return _ESCAPE.sub(character, text)


def _texts(flag: str, value: str) -> tuple[str, ...]:
  """A flag's texts: one text as it is, or several written as a Python tuple.

  Both forms have the same escapes.
  """
  is_several = re.match(r'[([]\s*[\'"]', value)
  if not is_several and value[:1] not in ('"', "'"):
    return (unescaped(flag, value),)
  try:
    with warnings.catch_warnings():
      # Python warns of a backslash that begins no escape.
      warnings.simplefilter('ignore')
      found = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    if not is_several:  # a text may begin with a quotation mark
      return (unescaped(flag, value),)
    raise InputError(
      f"{flag}={value!r:.80}: expected a text, or several as in ('a', 'b')"
    ) from None
  return (found,) if isinstance(found, str) else tuple(found)


def with_texts(argv: Sequence[str]) -> list[str]:
  """The arguments; values of text flags are rewritten for the flag library."""
  read = list(argv)
  for at, argument in enumerate(argv):
    if argument == '--':
      break
    flag, equals, value = argument.partition('=')
    if flag.lstrip('-') not in _TEXT_FLAGS or not flag.startswith('-'):
      continue
    if equals:
      read[at] = f'{flag}={_texts(flag, value)!r}'
    elif at + 1 < len(argv):
      read[at + 1] = repr(_texts(flag, argv[at + 1]))
  return read


def take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """Splits `--config=FILE` off the arguments; the last such flag counts."""
  path, rest, at = None, [], 0
  while at < len(argv):
    name, equals, value = argv[at].partition('=')
    if name in ('--config', '-config'):
      if not equals:
        at += 1
        if at == len(argv):
          raise InputError('--config: a file is missing')
        value = argv[at]
      path = value
    else:
      rest.append(argv[at])
    at += 1
  return path, rest
