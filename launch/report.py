"""Compares evaluation runs, or draws the record of a search.

  python launch/report.py --baseline=RUN --candidate=RUN --output=DIR
  python launch/report.py --search=search.jsonl --output=DIR

A RUN is a folder that launch/evaluate.py wrote, or an answers file in Spec-Bench's
format, of any method. --candidate may come several times. DIR is made if it is not
there. For runs it then holds report.json, report.md, speedup.png,
accepted_lengths.png and speedup_over_stream.png. If the answers have the details,
it also holds acceptance_by_position.png and time_budget.png; with --export_answers
also answers/NAME.jsonl for each run, which Spec-Bench's scripts take. For a search
it holds search.json, matchness_over_evaluations.png, matchness_over_seconds.png,
skip_set.png and sources.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import importlib
import io
import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags
from cli import common, console

from swift_jax.checkpoint import hub
from swift_jax.checkpoint.hf_config import one_line
from swift_jax.errors import InputError
from swift_jax.evaluation import runs
from swift_jax.evaluation.report import contents as report
from swift_jax.evaluation.report import markdown as report_markdown
from swift_jax.evaluation.report import text as report_text
from swift_jax.files import atomic

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SEARCH = flags.DEFINE_string(
  'search', None, 'record of a search (--config.search.record of a run)'
)
_BASELINE = flags.DEFINE_string(
  'baseline', None, 'run with which the others are compared'
)
_CANDIDATES = flags.DEFINE_multi_string(
  'candidate', [], 'run to compare; may come several times'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'folder of the report',
  allow_override=True,  # other launchers have one, and tests import several
)
_EXPORT = flags.DEFINE_boolean(
  'export_answers', False, "write each run's answers for Spec-Bench's scripts"
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer',
  None,
  "folder of the tokenizer for Spec-Bench's figure; it counts the tokens of the"
  " baseline's text; without it the recorded tokens count",
)
_ALLOW_MISSING = flags.DEFINE_boolean(
  'allow_missing', False, 'take runs that are not finished'
)
_SEED = flags.DEFINE_integer('seed', 0, 'seed of the bootstrap', lower_bound=0)

_RUN_FLAGS = (
  'baseline',
  'candidate',
  'export_answers',
  'tokenizer',
  'allow_missing',
  'seed',
)


def load_drawing(name: str) -> Any:
  """Imports a module of the evaluation that draws; matplotlib is an extra.

  Raises:
    InputError: matplotlib is not installed.
  """
  try:
    return importlib.import_module(f'swift_jax.evaluation.report.{name}')
  except ImportError as error:
    raise InputError(
      f'needs matplotlib ({error}): install the [plots] extra of swift-jax'
    ) from None


def load_count(path: str) -> Callable[[str], int]:
  """A function that counts a text's token ids, as Spec-Bench's speed.py does.

  Raises:
    InputError: the folder holds no tokenizer that can be read.
  """
  folder = hub.resolve(path)
  try:
    tokenizer = hub.read_tokenizer(folder)
  # The tokenizers library raises plain Exceptions.
  except Exception as error:
    reason = one_line(error)
    raise InputError(
      f'--tokenizer={path}: the tokenizer cannot be read: {reason}'
    ) from error
  return lambda text: len(tokenizer(text).input_ids)


def write_files(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Writes files into a folder, each of them whole or not at all.

  Raises:
    InputError: a file cannot be written, or would replace an input of the report.
  """
  read = [_SEARCH.value, _BASELINE.value, *_CANDIDATES.value]
  for name in files:
    for path in filter(None, read):
      if atomic.is_same(path, str(folder / name)):
        raise InputError(
          f'--output={_OUTPUT.value!r}: {name} would replace {path}'
        )
  for name, content in files.items():
    file = folder / name
    where = f'--output={_OUTPUT.value!r}: {name}'
    with atomic.named_errors(f'{where}: cannot be written'):
      file.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(atomic.writable(str(file), where), content, where)


def png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  return buffer.getvalue()


def report_search(path: str, folder: pathlib.Path) -> None:
  """Writes the figures and search.json of one search, and prints its table."""
  if (folder / runs.RUN).exists():
    raise InputError(
      f'--output={_OUTPUT.value!r}: is the workdir of a run, whose search.json'
      ' would be lost'
    )
  search_report = load_drawing('search')
  header, passes = search_report.read(path)
  summary = search_report.summarize(header, passes)
  figures = search_report.pictures(header, passes)
  files = {name: png(figure) for name, figure in figures.items()}
  files['search.json'] = (json.dumps(summary, indent=1) + '\n').encode()
  write_files(folder, files)
  console.write(search_report.table(summary))


def report_runs(folder: pathlib.Path) -> None:
  """Writes figures, report.json and report.md of all runs; prints their table."""
  run_plots = load_drawing('run_plots')
  round_plots = load_drawing('round_plots')
  paths = [_BASELINE.value, *_CANDIDATES.value]
  named = ['--baseline', *['--candidate'] * len(_CANDIDATES.value)]
  found = [
    runs.read_run(path, flag, _ALLOW_MISSING.value)
    for path, flag in zip(paths, named, strict=True)
  ]
  by_name = dict(zip(report.names(paths), found, strict=True))
  count = _TOKENIZER.value and load_count(_TOKENIZER.value)
  summary = report.build(by_name, _SEED.value, count, _TOKENIZER.value)
  baseline, *others = by_name
  candidates = {name: by_name[name].answers for name in others}
  figures = {
    'speedup.png': run_plots.speedup_bars(summary),
    'accepted_lengths.png': run_plots.accepted_lengths(candidates),
    'speedup_over_stream.png': run_plots.speedup_over_stream(
      by_name[baseline].answers, candidates
    ),
    **round_plots.pictures(summary),
  }
  files = {name: png(figure) for name, figure in figures.items()}
  # JSON can hold half a character, which no file can: its escape is written.
  text = report_markdown.markdown(summary, list(figures))
  files['report.md'] = text.encode(errors='backslashreplace')
  files['report.json'] = to_json(summary)
  if _EXPORT.value:
    for name, run in by_name.items():
      lines = report.spec_bench_lines(run.answers)
      files[f'answers/{name}.jsonl'] = lines
  write_files(folder, files)
  console.write(report_text.terminal(summary))


def to_json(summary: report.Report) -> bytes:
  """The content of report.json.

  Raises:
    InputError: a figure is not finite.
  """
  try:
    text = json.dumps(summary, indent=1, allow_nan=False)
  except ValueError as error:
    raise InputError(f'report.json: a figure is not finite: {error}') from None
  return f'{text}\n'.encode()


def check_flags() -> None:
  """Checks that the flags name either a search or runs.

  Raises:
    InputError: names a flag that is missing, or that does not go with others.
  """
  if _SEARCH.value is not None:
    for name in _RUN_FLAGS:
      if flags.FLAGS[name].present:
        raise InputError(f'--{name}: does not go with --search')
  elif not any(flags.FLAGS[name].present for name in _RUN_FLAGS):
    raise InputError(
      '--search: a file is needed, or runs: --baseline and --candidate'
    )
  elif not _BASELINE.value:
    raise InputError('--baseline: a folder or an answers file is needed')
  elif not all(_CANDIDATES.value) or not _CANDIDATES.value:
    raise InputError('--candidate: a folder or an answers file is needed')
  if not _OUTPUT.value:
    raise InputError('--output: a folder is needed')


def main() -> None:
  check_flags()
  with atomic.folder(_OUTPUT.value, f'--output={_OUTPUT.value!r}') as folder:
    if _SEARCH.value is not None:
      report_search(_SEARCH.value, folder)
    else:
      report_runs(folder)


if __name__ == '__main__':
  common.run_plain(main)
