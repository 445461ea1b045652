"""The command line before the flag library reads it: which config, which fields."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
import difflib
import re
import warnings

from ml_collections import ConfigDict

from swift_jax.errors import InputError

# Flags of fields that hold text; see `unescaped`.
_TEXTS = ('config.sampling.stop_strings',)
_ESCAPE = re.compile(
  r'\\(?:[\\\'"abfnrtv\n]|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}'
  r'|U[0-9a-fA-F]{8}|N\{[^}]*\}|[xuUN])'
)


def check_fields(
  argv: Sequence[str], config: ConfigDict, bare: Collection[str]
) -> None:
  """Names an unknown field as it was typed; the flag library only raises.

  Args:
    bare: the fields that stand in no section.

  Raises:
    InputError: there is one.
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
  """All fields, as in `draft.tree`."""
  sections = config.to_dict().items()
  return [*bare] + [
    f'{name}.{field}'
    for name, of in sections
    if name not in bare
    for field in of
  ]


def unescaped(flag: str, text: str) -> str:
  """A text of the command line, with Python's escapes: \\n is a line break.

  A backslash that begins none of them stays.

  Args:
    flag: what errors call it.

  Raises:
    InputError: an escape that is not whole, as \\x4.
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
  """One text as it is, or several as a Python tuple, with the same escapes."""
  is_several = re.match(r'[([]\s*[\'"]', value)
  if not is_several and value[:1] not in ('"', "'"):
    return (unescaped(flag, value),)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of a backslash that stays
      found = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    if not is_several:  # a quotation mark is a text too
      return (unescaped(flag, value),)
    raise InputError(
      f"{flag}={value!r:.80}: expected a text, or several as in ('a', 'b')"
    ) from None
  return (found,) if isinstance(found, str) else tuple(found)


def with_texts(argv: Sequence[str]) -> list[str]:
  """The arguments, those that hold texts as the flag library reads them."""
  read = list(argv)
  for at, argument in enumerate(argv):
    if argument == '--':
      break
    flag, equals, value = argument.partition('=')
    if flag.lstrip('-') not in _TEXTS or not flag.startswith('-'):
      continue
    if equals:
      read[at] = f'{flag}={_texts(flag, value)!r}'
    elif at + 1 < len(argv):
      read[at + 1] = repr(_texts(flag, argv[at + 1]))
  return read


def take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """Splits `--config=FILE` off the arguments; the last one counts."""
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
