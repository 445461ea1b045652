"""What the launchers share: one config of flags, one line for bad input.

A config file only overrides; the defaults are those of the dataclasses in
`swift_jax/config.py`. So the file is read before the flags are declared: each
field of each section becomes `--config.SECTION.FIELD=VALUE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags
import ml_collections
from ml_collections import config_flags

from swift_jax.config import (
  DecodeConfig,
  DraftConfig,
  SearchConfig,
)
from swift_jax.errors import InputError

if TYPE_CHECKING:
  from swift_jax import Engine

_ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = str(_ROOT / 'configs' / 'demo.py')
_DATACLASSES = {
  'draft': DraftConfig,
  'search': SearchConfig,
  'decode': DecodeConfig,
}
# An empty dtype is the checkpoint's own.
SECTIONS: Mapping[str, Any] = {
  'model': {'path': 'demo', 'dtype': ''},
  **_DATACLASSES,
}


def read_config(path: str) -> ml_collections.ConfigDict:
  """`get_config()` of a Python file."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise InputError(f'--config={path}: no such file')
  spec = importlib.util.spec_from_file_location('swift_jax_config', file)
  if spec is None or spec.loader is None:
    raise InputError(f'--config={path}: not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config()
  except Exception as e:  # whatever the file does wrong, the file is named
    raise InputError(f'--config={path}: {type(e).__name__}: {e}') from e


def merge(
  overrides: ml_collections.ConfigDict, sections: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """All fields of all sections: the dataclasses' defaults, overridden.

  Args:
    overrides: what a config file gives.
    sections: a dataclass, or a dict of defaults, by name.

  Raises:
    InputError: a section or field that does not exist.
  """
  merged = ml_collections.ConfigDict()
  for name, section in sections.items():
    defaults = section
    if dataclasses.is_dataclass(section):
      defaults = {f.name: f.default for f in dataclasses.fields(section)}
    merged[name] = ml_collections.ConfigDict(dict(defaults))
  for name, fields in overrides.items():
    if name not in merged:
      raise InputError(
        f'config.{name}: no such section (there are {", ".join(sections)})'
      )
    for field, value in fields.items():
      if field not in merged[name]:
        raise InputError(f'config.{name}.{field}={value!r}: no such field')
      merged[name][field] = value
  return merged.lock()


def train_config() -> Any:
  """The trainer's dataclass; imported late, since it brings optax and orbax."""
  from swift_jax.training import TrainConfig

  return TrainConfig


def section(config: ml_collections.ConfigDict, name: str) -> Any:
  """One section as its frozen, checked dataclass."""
  return _DATACLASSES[name](**config[name].to_dict())


def load_engine(config: ml_collections.ConfigDict) -> Engine:
  """The engine that a config describes."""
  from swift_jax import Engine

  return Engine.from_pretrained(
    config.model.path,
    dtype=config.model.dtype or None,
    draft=section(config, 'draft'),
    search=section(config, 'search'),
  )


def show_text(_: int, piece: str) -> None:
  """Writes a piece of text as it comes."""
  sys.stdout.write(piece)
  sys.stdout.flush()


def run(
  main: Callable[[ml_collections.ConfigDict], int | None],
  default_config: str = DEFAULT_CONFIG,
  sections: Mapping[str, Any] = SECTIONS,
) -> None:
  """Declares the flags and runs `main(config)`; bad input ends with status 2."""
  argv = list(sys.argv)
  try:
    path, argv = _take_config(argv, default_config)
    config = merge(read_config(path), sections)
    _check_fields(argv, config)
    holder = config_flags.DEFINE_config_dict('config', config)
  except InputError as e:
    _refuse(e)

  def parse(args: Sequence[str]) -> list[str] | None:
    try:
      return flags.FLAGS(list(args))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
      _refuse(e)

  def guarded(args: Sequence[str]) -> int | None:
    try:
      if len(args) > 1:
        raise InputError(f'unexpected argument {args[1]!r}')
      return main(holder.value)
    except InputError as e:
      _refuse(e)
    except KeyboardInterrupt:
      print('interrupted', file=sys.stderr)
      return 130

  app.run(guarded, argv=argv, flags_parser=parse)


def _check_fields(
  argv: Sequence[str], config: ml_collections.ConfigDict
) -> None:
  """Names an unknown field as it was typed; the flag library only raises."""
  for argument in argv[1:]:
    flag = argument.partition('=')[0].lstrip('-')
    prefix, _, path = flag.partition('.')
    if prefix != 'config' or not argument.startswith('-'):
      continue
    name, _, field = path.partition('.')
    if name not in config or field not in config[name]:
      raise InputError(f'{argument}: the config has no such field')


def _take_config(argv: list[str], default: str) -> tuple[str, list[str]]:
  """Splits `--config=FILE` off the arguments."""
  path, rest, at = default, [], 0
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


def _refuse(error: Exception) -> None:
  """One line on standard error, status 2."""
  message = ' '.join(str(error).split())
  print(f'{pathlib.Path(sys.argv[0]).name}: {message}', file=sys.stderr)
  sys.exit(2)
