"""The text of --help: a launcher's flags, then the config's fields by section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import inspect
import re
import textwrap
import types

from absl import flags
from ml_collections import ConfigDict

_NAMES = ('--help', '-help', '-h', '--helpshort', '-?', '--?')
_WIDTH, _COLUMN = 98, 30
# Fields that serve comparisons with the paper alone: its rules in place of ours, and
# the values that only its rules read.
_PUBLISHED = (
  'draft.adaptive',
  'draft.confidence_threshold',
  'draft.tree_bounds',
  'search.recipe',
)


def is_asked(argv: Sequence[str]) -> bool:
  """Whether the arguments ask for help."""
  return any(argument in _NAMES for argument in argv[1:])


def of_flags(launcher: types.ModuleType) -> list[str]:
  """A launcher's docstring up to the end of its commands, then its flags."""
  summary, _, rest = inspect.getdoc(launcher).partition('\n\n')
  return [
    summary,
    '',
    rest.partition('\n\n')[0],
    '',
    *(_line(*flag) for flag in _flags(launcher)),
    _line('--verbosity=-1', 'only errors go to standard error'),
    _line('--helpfull', "the libraries' flags too"),
  ]


def of_config(
  config: ConfigDict, sections: Mapping[str, type], fields: Mapping[str, str]
) -> list[str]:
  """The config's fields with the values that hold without further flags.

  Fields that serve comparisons with the paper stand in a section of their own.

  Args:
    config: the config with these values.
    sections: for each section's name its dataclass.
    fields: for each field of no section its meaning.
  """
  file = 'a Python file that sets the fields below; NAME is its argument'
  lines = [_line('--config=FILE[:NAME]', file)]
  lines += [_line(f'--config.{k}', meaning) for k, meaning in fields.items()]
  heading = 'Only for comparisons with the published method'
  published = ['', _line('--config.', heading)]
  for name, cls in sections.items():
    meaning_of = meanings(cls)
    summary = inspect.getdoc(cls).partition('\n')[0]
    lines += ['', _line(f'--config.{name}.', summary)]
    values = config[name].to_dict()
    for field in filter(values.__contains__, cls.__dataclass_fields__):
      path, value = f'{name}.{field}', f'{field}={values[field]!r}'
      meaning = meaning_of.get(field, '')
      if path in _PUBLISHED:
        published.append(_line(f'  {name}.{value}', meaning))
      else:
        lines.append(_line(f'  {value}', meaning))
  return lines + (published if len(published) > 2 else [])


def _flags(module: types.ModuleType) -> Iterator[tuple[str, str]]:
  for flag in flags.FLAGS.get_key_flags_for_module(module):
    no = '[no]' if flag.boolean else ''
    # A default of False or nothing is not shown.
    value = f'={flag.default_as_str}' if flag.default else ''
    yield f'--{no}{flag.name}{value}'.replace("'", ''), flag.help


def meanings(cls: type) -> dict[str, str]:
  """For each attribute of a class the text of the class's docstring."""
  _, _, attributes = inspect.getdoc(cls).partition('\nAttributes:\n')
  # The split gives: an empty text, names, text, names, text, ...
  parts = re.split(r'^  (\w[\w, ]*): ', attributes, flags=re.MULTILINE)[1:]
  return {
    name: text
    for names, text in zip(parts[::2], parts[1::2], strict=True)
    for name in names.split(', ')
  }


def _line(name: str, meaning: str) -> str:
  """A name and the first sentence of its meaning, cut to the line's width."""
  start = f'{name:<{_COLUMN}} '
  room = _WIDTH - len(start)
  text = ' '.join(meaning.split()).partition('. ')[0].removesuffix('.')
  if len(text) > room:
    text = text.partition('; ')[0]
  return (start + textwrap.shorten(text, room, placeholder=' ...')).rstrip()
