"""Asks the compiler of a TPU or GPU that is not here: will it run, and how well?

  python launch/compile.py --target=v5e:2x2 --shape=llama2_7b --config.mesh.tensor=4 \\
    --context=2048 --output=compile.json
  python launch/compile.py --target=h100:8 --config=configs/llama.py:llama2_70b \\
    --config.mesh.tensor=8 --config.decode.batch_size=8 --context=4096
  python launch/compile.py --target=list

Every program that a run would compile is compiled from shapes alone: no weights are
read, no device is started. A line for each says how long that takes, what memory it
needs, which branches are kept, what is copied, and which collectives there are. Then
come the device's memory at its fullest, the bytes that passes move, and what SWIFT may
gain: an estimate. The exit status is 1 if the run does not fit into memory.

A TPU needs the extra [compile-tpu], a GPU [compile-gpu]; `--plot` needs [plots].
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib
import io
import json
import os
from typing import TYPE_CHECKING, Any

from absl import flags
from cli import common, machine
from cli.console import say, write
from ml_collections import ConfigDict

from swift_jax.config.sampling import SamplingConfig, resolve
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.files import atomic

if TYPE_CHECKING:
  from swift_jax.compilation.programs import Run, Shapes

_NOT_FITTING = 1
_CONTEXT = 2048  # tokens, where the model takes as many
# What a model's shape cannot do without; transformers would fill in a 7B's.
_NEEDED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
_FILES = ('config.json', 'generation_config.json')
_TARGET = flags.DEFINE_string(
  'target', None, 'devices to compile for, as in v5e:2x2 or h100:8; or list'
)
_SHAPE = flags.DEFINE_string(
  'shape',
  None,
  'a published shape by name, as in llama2_70b, instead of a config.json',
  allow_override=True,  # other launchers have one, and tests import several
)
_CONTEXT_FLAG = flags.DEFINE_integer(
  'context', None, 'tokens of the longest text, with its prompt; default: 2048'
)
_PROGRAMS = flags.DEFINE_list(
  'programs', None, 'some of the programs, by the names in the table'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'JSON file with all figures', allow_override=True
)
_PLOT = flags.DEFINE_string(
  'plot', None, 'PNG file with the memory by part and program'
)


def main(config: ConfigDict) -> int:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax

  from swift_jax.compilation import targets

  jax.config.update('jax_platforms', 'cpu')
  if _TARGET.value is None:
    raise InputError('--target: expected a target; --target=list names them')
  if _TARGET.value == 'list':
    write('\n'.join([*targets.listed(), '']))
    return 0
  names = read_programs()
  outputs = {
    flag.name: atomic.writable(flag.value, f'--{flag.name}={flag.value!r}')
    for flag in (_OUTPUT, _PLOT)
    if flag.value
  }
  plots = load_plots() if _PLOT.value else None
  shapes = read_shapes(config)
  from swift_jax.compilation import child, report

  say(report.heading(shapes))
  wanted = [name for name in shapes.names if not names or name in names]
  if not wanted:
    raise InputError(f'--programs={",".join(names)}: this run has none of them')
  *found, costs = compiled(shapes.run, [*wanted, child.COSTS])
  memory = report.memory(shapes, found)
  moved = report.bytes_of_passes(shapes)
  speeds = {way: report.speeds(shapes, one) for way, one in costs.items()}
  verdict = report.verdict(shapes, memory, found)
  figures = {
    **facts(config, shapes),
    'programs': [dataclasses.asdict(one) for one in found],
    'memory': {**dataclasses.asdict(memory), 'peak': memory.peak},
    'verdict': verdict,
    'bytes_of_passes': moved,
    'estimates': speeds,
    'summary': report.summary(found, memory),
  }
  if _OUTPUT.value:  # written first: printing fails if nobody reads
    text = json.dumps(figures, indent=1, allow_nan=False)
    atomic.replace(
      outputs['output'], f'{text}\n', f'--output={_OUTPUT.value!r}'
    )
  if plots is not None:
    picture = io.BytesIO()
    plots.memory_figure(memory, found).savefig(picture, format='png')
    where = f'--plot={_PLOT.value!r}'
    atomic.replace(outputs['plot'], picture.getvalue(), where)
  tables = [
    report.programs_table(found),
    report.memory_table(memory),
    report.passes_table(moved),
    *(report.speeds_table(way, one) for way, one in speeds.items()),
  ]
  write(report.heading(shapes) + '\n\n')
  write(''.join(f'{table.text()}\n\n' for table in tables))
  write(f'{verdict}\n\n{show_summary(figures["summary"])}\n')
  return 0 if memory.fits else _NOT_FITTING


def compiled(run: Run, names: Sequence[str]) -> list[Any]:
  """What becomes of each program; a line for each as it begins and ends."""
  from swift_jax.compilation import child, report

  found, results = [], child.results(run, names)
  for number, name in enumerate(names, 1):
    say(f'compiles {name}, {number} of {len(names)}')
    found.append(next(results))
    if name != child.COSTS:  # the table comes when all are there
      say(report.line(found[-1]))
  return found


def show_summary(summary: dict[str, Any]) -> str:
  parts = [
    f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
    for name, value in summary.items()
  ]
  return f'summary: {", ".join(parts)}'


def read_programs() -> Sequence[str]:
  """The names of `--programs`; none: all."""
  from swift_jax.compilation import programs

  names = _PROGRAMS.value or []
  if not set(names) <= set(programs.NAMES):
    known = ', '.join(programs.NAMES)
    raise InputError(f'--programs={",".join(names)}: expected some of {known}')
  return names


def load_plots() -> Any:
  """The module that draws; matplotlib is an extra.

  Raises:
    InputError: matplotlib is not installed.
  """
  try:
    return importlib.import_module('swift_jax.compilation.plots')
  except ImportError as error:
    raise InputError(
      f'--plot={_PLOT.value!r}: needs matplotlib ({error}): install the [plots]'
      ' extra of swift-jax'
    ) from None


def read_shapes(config: ConfigDict) -> Shapes:
  """What is to run, from flags and config, checked.

  Raises:
    InputError: names the flag, file or field and its value.
  """
  from swift_jax.compilation import programs, targets

  sections = {name: common.section(config, name) for name in common.SECTIONS}
  cfg, defaults = read_model(sections['model'])
  context = _CONTEXT_FLAG.value
  if context is None:
    context = min(_CONTEXT, cfg.max_position_embeddings)
  if not 1 < context <= cfg.max_position_embeddings:
    raise InputError(
      f'--context={context}: expected 2 to'
      f' max_position_embeddings={cfg.max_position_embeddings}'
    )
  window = sections['search'].context_window
  if window > cfg.max_position_embeddings:
    raise InputError(
      f'search.context_window={window}: the context holds only'
      f' max_position_embeddings={cfg.max_position_embeddings}'
    )
  sampling = resolve(sections['sampling'], defaults).config
  run = programs.Run(
    cfg=cfg,
    machine=targets.find(_TARGET.value),
    mesh=sections['mesh'],
    context=context,
    draft=sections['draft'],
    search=sections['search'],
    decode=dataclasses.replace(sections['decode'], sampling=sampling),
  )
  return programs.Shapes(run)


def read_model(
  source: common.ModelSource,
) -> tuple[ModelConfig, SamplingConfig]:
  """The model's shape, and what its files say of sampling."""
  from swift_jax.checkpoint import hf_config, hub
  from swift_jax.config import shapes

  if _SHAPE.value is not None:
    if _SHAPE.value not in shapes.SHAPES:
      known = ', '.join(shapes.SHAPES)
      raise InputError(f'--shape={_SHAPE.value}: expected one of {known}')
    cfg = shapes.SHAPES[_SHAPE.value]
    if source.dtype:
      cfg = dataclasses.replace(cfg, dtype=source.dtype)
    defaults = SamplingConfig()
  else:
    folder = hub.resolve(source.path, _FILES)
    cfg = hf_config.read_config(folder, source.dtype or None)
    file = folder / 'config.json'
    given = hf_config.read_json(file)
    missing = [name for name in _NEEDED if given.get(name) is None]
    if missing:
      raise InputError(f'{file}: no {missing[0]}: the shape is not known')
    defaults = hf_config.generation_defaults(folder)
  return dataclasses.replace(cfg, weights=source.weights), defaults


def facts(config: ConfigDict, shapes: Shapes) -> dict[str, Any]:
  """What the figures depend on."""
  run = shapes.run
  return {
    'target': run.machine.name,
    'device': run.machine.kind,
    'model': dataclasses.asdict(run.cfg),
    'mesh': {'data': run.mesh.data, 'tensor': run.mesh.tensor},
    'batch': run.decode.batch_size,
    'context': run.context,
    'slots': shapes.target.capacity,
    'config': config.to_dict(),
    'compiled_on': machine.environment(),
  }


if __name__ == '__main__':
  common.run(main, default_config=None)  # those of the demo are not another's
