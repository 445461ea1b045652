"""Shows the skip sets of a file and writes them in the official form.

  python launch/skip_sets.py --sets=skip_sets.json
  python launch/skip_sets.py --sets=published --name=llama-2-13b/cnndm
  python launch/skip_sets.py --sets=skip_sets.json --model=FINGERPRINT \\
    --export=official.json

A file may be in our form or in the official form, which holds nothing but the
layers. The table has a dash for a fact that the file does not hold. --model and
--name choose among the sets, for --export too.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from cli import common, console

from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.search.files import cached_sets
from swift_jax.search.files.cached_sets import CachedSet

_SETS = flags.DEFINE_string(
  'sets', None, 'file with skip sets; published: the sets in the package'
)
_MODEL = flags.DEFINE_string(
  'model', None, 'only the sets for the model of this fingerprint'
)
_NAME = flags.DEFINE_string('name', None, 'only the sets of this name')
_EXPORT = flags.DEFINE_string(
  'export', None, 'file to write the sets to, in the official form'
)

COLUMNS = (
  'name',
  'model',
  'attention',
  'mlp',
  'matchness',
  'skip ratio',
  'window',
  'date',
)


def choose(path: str, model: str | None, name: str | None) -> list[CachedSet]:
  """The sets of a file that are for `model` and called `name`; None: any.

  Raises:
    InputError: the file cannot be read, or holds no such set.
  """
  filters = {'model': model, 'name': name}
  filters = {key: value for key, value in filters.items() if value is not None}
  sets = [
    entry
    for entry in cached_sets.read(path, '--sets')
    if all(getattr(entry, key) == value for key, value in filters.items())
  ]
  if not sets:
    wanted = [f' with --{key}={value!r}' for key, value in filters.items()]
    raise InputError(f'--sets={path!r}: holds no set{" and".join(wanted)}')
  return sets


def row(entry: CachedSet) -> list[str]:
  """The cells of a set's line in the table, one for each column."""
  matchness = None if entry.matchness is None else f'{entry.matchness:.3f}'
  cells = (
    entry.name if entry.name.isprintable() else repr(entry.name),
    entry.model,
    len(entry.attention),
    len(entry.mlp),
    matchness,
    entry.skip_ratio and round(entry.skip_ratio, 3),
    entry.context_window,
    entry.date,
  )
  return ['-' if cell is None else str(cell) for cell in cells]


def table(sets: Sequence[CachedSet]) -> str:
  """The table: the columns' names, then a line for each set."""
  rows = [COLUMNS, *map(row, sets)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    '  '.join(f'{c:<{w}}' for c, w in zip(cells, widths, strict=True))
    for cells in rows
  )
  return ''.join(f'{line.rstrip()}\n' for line in lines)


def main() -> None:
  path, output = _SETS.value, _EXPORT.value
  if path is None:
    raise InputError('--sets: a file is needed')
  sets = choose(path, _MODEL.value, _NAME.value)
  if output is None:
    console.write(table(sets))
    return
  if atomic.is_same(output, path):
    raise InputError(f'--export={output!r}: would replace --sets itself')
  cached_sets.export(sets, output, '--export')
  console.write(f'{len(sets)} sets written to {output}\n')


if __name__ == '__main__':
  common.run_plain(main)
