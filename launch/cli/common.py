"""Start of every launcher: one config as flags, one line for bad input.

A config file only overrides defaults; the defaults stand in the dataclasses of
`swift_jax/config/settings.py`. The file is read before the flags are declared, for
each field of each section becomes a flag `--config.SECTION.FIELD=VALUE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import errno
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import types
import typing
from typing import Any, NoReturn
import warnings

# Standard error belongs to our one line: XLA says nothing but errors there, and
# transformers says nothing. jax reads the variable once, when it is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')

from absl import app, flags, logging
from ml_collections import ConfigDict, config_dict, config_flags

from cli import arguments, console, help_text, machine, xla_flags
from cli.console import say
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import (
  DTYPES,
  WEIGHTS,
  DecodeConfig,
  DraftConfig,
  MeshConfig,
  SearchConfig,
)
from swift_jax.errors import InputError

if typing.TYPE_CHECKING:
  from swift_jax import Engine

console.heed_interrupts()  # the launchers' imports, which follow, take a second
xla_flags.set_for_cpu(os.environ)

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


@dataclasses.dataclass(frozen=True)
class ModelSource:
  """The model to load.

  Attributes:
    path: a folder, a hub id, or `demo` for the model in the package.
    dtype: bfloat16, float16 or float32; empty: the checkpoint's own.
    weights: int8 rounds the projections' weights; empty: as they are. The rounded
      weights are whole numbers with scales.
  """

  path: str = 'demo'
  dtype: str = ''
  weights: str = ''

  def __post_init__(self):
    if self.weights not in WEIGHTS:
      raise InputError(f"model.weights={self.weights!r}: expected '' or 'int8'")
    if not self.path:
      raise InputError(f'model.path={self.path!r}: expected a folder or hub id')
    if self.dtype and self.dtype not in DTYPES:
      raise InputError(
        f'model.dtype={self.dtype!r}: expected one of {", ".join(DTYPES)}'
      )


Sections = Mapping[str, type]
SECTIONS: Sections = {
  'model': ModelSource,
  'decode': DecodeConfig,
  'draft': DraftConfig,
  'mesh': MeshConfig,
  'sampling': SamplingConfig,
  'search': SearchConfig,
}
# The fields that stand in no section, each with its type and its meaning. A field
# that nobody sets is None.
FIELDS: Mapping[str, tuple[type, str]] = {
  'compilation_cache_dir': (
    str,
    'folder of compiled programs, may be gs://; empty: none are kept',
  )
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_config(path: str) -> ConfigDict:
  """The config that `get_config()` of a Python file returns.

  Args:
    path: the file. `FILE.py:NAME` calls `get_config(NAME)`.

  Raises:
    InputError: something is wrong with the file or the name; the error names both.
  """
  stem, colon, name = path.partition('.py:')
  file = pathlib.Path(f'{stem}.py' if colon else path)
  try:
    if not file.is_file():
      raise InputError(f'--config={path}: no such file')
  except (
    OSError
  ) as error:  # a folder without permission, a name that is too long
    raise InputError(f'--config={path}: {error.strerror}') from None
  spec = importlib.util.spec_from_file_location('swift_jax_config', file)
  if spec is None or spec.loader is None:
    raise InputError(f'--config={path}: not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([name] if colon else []))
  except Exception as error:
    # A config file refuses a name by a ValueError, whose message is enough. The
    # message of another exception needs its type.
    kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
    raise InputError(f'--config={path}: {kind}{error}') from error
  if not isinstance(config, ConfigDict):
    raise InputError(
      f'--config={path}: get_config() gives {config!r}, not a ConfigDict'
    )
  return config


def merge(overrides: ConfigDict, sections: Sections) -> ConfigDict:
  """The full config: the dataclasses' defaults with a file's overrides, locked.

  It has all fields of all sections, and the fields of no section.

  Args:
    overrides: the config that a file gives.
    sections: for each section's name its dataclass.

  Raises:
    InputError: a section or a field does not exist, or a value has a wrong type.
  """
  merged = ConfigDict({name: _defaults(cls) for name, cls in sections.items()})
  for name, (kind, _) in FIELDS.items():
    merged[name] = config_dict.placeholder(kind)
  for name, fields in overrides.items():
    if name in FIELDS:
      _override(merged, name, fields, f'config.{name}')
      continue
    if name not in sections:
      known = ', '.join(sections)
      raise InputError(f'config.{name}: no such section (there are {known})')
    if not isinstance(fields, ConfigDict):
      raise InputError(f'config.{name}={fields!r}: expected a section')
    for field, value in fields.items():
      if field not in merged[name]:
        raise InputError(f'config.{name}.{field}={value!r}: no such field')
      _override(merged[name], field, value, f'config.{name}.{field}')
  return merged.lock()


def _override(fields: ConfigDict, name: str, value: Any, where: str) -> None:
  try:
    fields[name] = value
  except TypeError as error:
    raise InputError(f'{where}={value!r}: {error}') from None


def _defaults(cls: type) -> dict[str, Any]:
  """The defaults of a section's fields; fields that are dataclasses are left out.

  A field whose default is missing or None accepts a value of its type.
  """
  kinds = typing.get_type_hints(cls)
  return {
    field.name: config_dict.placeholder(_plain_type(kinds[field.name]))
    if field.default in (dataclasses.MISSING, None)
    else field.default
    for field in dataclasses.fields(cls)
    if not dataclasses.is_dataclass(field.default)
  }


def _plain_type(kind: Any) -> type:
  """`tuple[int, ...] | None` -> tuple."""
  options = [k for k in typing.get_args(kind) if k is not types.NoneType]
  if isinstance(kind, types.UnionType) and len(options) == 1:
    kind = options[0]
  return typing.get_origin(kind) or kind


def section(config: ConfigDict, name: str, cls: type | None = None) -> Any:
  """One section as its frozen dataclass, which checks every value."""
  return (cls or SECTIONS[name])(**config[name].to_dict())


def decode_config(config: ConfigDict, **changes: Any) -> DecodeConfig:
  """The sections decode and sampling as one, with `changes` to section decode."""
  decode = section(config, 'decode')
  sampling = section(config, 'sampling')
  return dataclasses.replace(decode, sampling=sampling, **changes)


def without_logprobs(decode: DecodeConfig) -> DecodeConfig:
  """The same settings without log-probabilities: nobody would see these figures."""
  logprobs = decode.sampling.logprobs
  if logprobs is not None:
    say(
      f'sampling.logprobs={logprobs}: none are taken; generate.py writes them to'
      ' --output_json'
    )
  sampling = dataclasses.replace(decode.sampling, logprobs=None)
  return dataclasses.replace(decode, sampling=sampling)


def load_engine(config: ConfigDict) -> Engine:
  """The engine that a config describes."""
  source = section(config, 'model')
  draft, search = section(config, 'draft'), section(config, 'search')
  cfg = section(config, 'mesh')
  from swift_jax import Engine
  from swift_jax.parallel import sharding

  mesh = None
  if cfg != MeshConfig():
    mesh = sharding.make_mesh(cfg.data, cfg.tensor, cfg.across_processes)
  return Engine.from_pretrained(
    source.path,
    dtype=source.dtype or None,
    weights=source.weights,
    mesh=mesh,
    draft=draft,
    search=search,
    require_tokenizer=True,
  )


def announce(what: str) -> None:
  """Says what begins now, and where its compiled programs are kept.

  It is called once the input is known to be good, so that a refusal stays one line.
  """
  import jax

  flag = flags.FLAGS['verbosity']
  if not flag.present or flag.value >= logging.INFO:
    folder = jax.config.jax_compilation_cache_dir or 'off'
    say(f'{what}; compilation cache: {folder}')


def run(
  main: Callable[[ConfigDict], int | None],
  default_config: str | None = 'demo',
  sections: Sections = SECTIONS,
  torch: bool = False,
) -> NoReturn:
  """Declares the flags and runs `main(config)`; bad input ends with status 2."""
  console.begin()
  try:
    path, argv = arguments.take_config(sys.argv)
    path = path or (default_config and str(_CONFIGS / f'{default_config}.py'))
    config = merge(read_config(path) if path else ConfigDict(), sections)
    if help_text.is_asked(argv):
      _help(main, config, sections)
    arguments.check_fields(argv, config, FIELDS)
    argv = arguments.with_texts(argv)
    config_flags.DEFINE_config_dict('config', config, sys_argv=argv)
  except InputError as error:
    _refuse(error)

  def main_with_cache() -> int | None:
    from cli import compilation_cache

    missing = compilation_cache.switch_on(config.compilation_cache_dir)
    if missing:
      say(missing)
    try:
      return main(config)
    except RuntimeError as error:  # XLA's errors are RuntimeErrors
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise _refused(machine.out_of_memory(config, error), error) from error

  run_plain(main_with_cache, argv, torch)


def _refused(message: str, error: Exception) -> InputError:
  """An error with our message and the notes of the original error."""
  refused = InputError(message)
  for note in getattr(error, '__notes__', []):
    refused.add_note(note)
  return refused


def run_plain(
  main: Callable[[], int | None],
  argv: Sequence[str] | None = None,
  torch: bool = False,
) -> NoReturn:
  """Runs a `main()` that has no config; bad input ends with status 2.

  Args:
    main: returns the exit status; None means 0.
    argv: the arguments; None: those of the command line.
    torch: `main` may import torch.
  """
  console.begin()
  if help_text.is_asked(argv or sys.argv):
    _help(main)
  if not torch:
    _hide_torch()

  def parse(args: Sequence[str]) -> list[str]:
    try:
      return flags.FLAGS(list(args))
    except (flags.Error, TypeError, ValueError) as error:
      _refuse(error)

  def guarded(args: Sequence[str]) -> int | None:
    _quiet()
    if len(args) > 1:
      _refuse(InputError(f'unexpected argument {args[1]!r}'))
    return _ended(main)

  app.run(guarded, argv=argv or sys.argv, flags_parser=parse)


def _ended(main: Callable[[], int | None]) -> int | None:
  """Runs `main` and returns its exit status; errors other than bugs become lines."""
  try:
    status = main()
    console.write('')  # flushes the text that `print` still holds back
    return status
  except InputError as error:
    _refuse(error)
  except BrokenPipeError as error:
    # The reader of our text, such as `head`, has read enough. That is no error.
    if hasattr(error, '__notes__'):
      say(console.with_notes('nobody reads standard output any more', error))
    return console.READER_GONE
  except OSError as error:
    if error.errno not in _FULL:
      raise
    file = error.filename or 'standard output or a file'
    _refuse(_refused(f'{file}: cannot be written: {error.strerror}', error))
  finally:
    console.drop_output_that_fails()


def _help(
  main: Callable[..., Any],
  config: ConfigDict | None = None,
  sections: Sections = SECTIONS,
) -> NoReturn:
  launcher = sys.modules[main.__module__]
  lines = help_text.of_flags(launcher)
  if config is not None:
    fields = {name: meaning for name, (_, meaning) in FIELDS.items()}
    lines += help_text.of_config(config, sections, fields)
  sys.exit(_ended(lambda: console.write('\n'.join([*lines, '']))))


def _quiet() -> None:
  """Silences libraries' warnings unless a flag asks for them; any text can print."""
  flag = flags.FLAGS['verbosity']
  if not flag.present or flag.value < logging.INFO:
    logging.set_verbosity(logging.ERROR)
  if not sys.warnoptions:
    warnings.simplefilter('ignore')
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


def _hide_torch() -> None:
  """Keeps transformers from importing torch.

  The launchers need only configs and tokenizers of transformers, which imports
  torch wherever torch is installed; that takes two seconds. transformers asks once
  whether torch is there. Other libraries, scipy for one, may find torch afterwards.
  """
  sys.modules['torch'] = None
  try:
    from transformers.utils import is_torch_available

    is_torch_available()
  finally:
    del sys.modules['torch']


def _refuse(error: Exception) -> NoReturn:
  """Ends the process with one line on standard error and status 2."""
  say(console.with_notes(error, error))
  sys.exit(2)
