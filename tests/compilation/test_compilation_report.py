"""Memory, verdict and summary from figures that are given."""

import dataclasses
import re

from matplotlib.figure import Figure
import numpy as np
from small_run import small_run

from swift_jax.compilation import plots, report
from swift_jax.compilation.measure import Compiled
from swift_jax.compilation.programs import Shapes

FILLING = 2**20


def programs(shapes, temporaries=(1000, 5000)):
  """Two programs; the second has an output of its own and code."""
  arguments = sum(shapes.parts.values()) + 64
  return [
    Compiled('plain', 2.0, arguments, temporaries=temporaries[0], code=10),
    Compiled(
      'rounds',
      3.0,
      arguments,
      outputs=700,
      aliased=600,
      temporaries=temporaries[1],
      code=30,
      logits=4000,
      copied_weights=11,
      copied_cache=7,
      copied_in_loops=5,
    ),
  ]


def of(**how):
  shapes = Shapes(small_run(**how))
  found = programs(shapes)
  return shapes, found, report.memory(shapes, found)


def test_the_peak_is_the_sum_of_its_parts():
  shapes, found, memory = of()
  assert memory.program == 'rounds' and memory.other == 64
  assert memory.peak == found[0].arguments + 5000 + 100 + 40
  assert memory.fits and 'It fits' in report.verdict(shapes, memory, found)
  shares = report.summary(found, memory)
  assert shares['compile_s'] == 5
  assert shares['temp_over_arguments'] == 5000 / found[1].arguments
  assert shares['temp_beyond_logits'] == 1000 / found[1].arguments
  assert (shares['copied_bytes'], shares['copied_in_loops']) == (18, 5)


def test_the_batch_that_is_advised_fits_and_one_more_does_not():
  shapes, _, full = of(batch=40)
  there = full.peak - shapes.parts['cache'] // 3
  shapes, found, memory = of(batch=40, memory=there)
  assert not memory.fits
  verdict = report.verdict(shapes, memory, found)
  (advised,) = re.findall(r'batch_size=(\d+)', verdict)

  def peak(batch):
    """With what grows with the rows as large as the rows say."""
    rest = memory.peak - memory.cache - memory.new
    return rest + batch / 40 * (memory.cache + memory.new)

  assert peak(int(advised)) <= there < peak(int(advised) + 1)


def test_what_the_compiler_refuses_does_not_fit():
  shapes, found, _ = of()
  found.append(Compiled('score', 1.0, refused='Ran out of memory'))
  memory = report.memory(shapes, found)
  assert not memory.fits
  verdict = report.verdict(shapes, memory, found)
  assert 'The compiler refuses score: Ran out of memory' in verdict
  assert 'mesh.tensor=2 on 2 devices' in verdict
  assert report.line(found[-1]).startswith('score is refused: Ran out')
  assert report.line(found[1]).startswith('rounds took 3 s: arguments')
  table = report.programs_table(found).text()
  assert table.splitlines()[-1].split()[0] == 'score' and 'no room' in table


def test_tables_have_a_line_for_each_figure():
  shapes, _, memory = of(bandwidth=1e9)
  moved = report.bytes_of_passes(shapes)
  assert len(report.passes_table(moved).rows) == len(moved) == 6
  assert moved['token drafted, 0.85 skipped'] < moved['plain step']
  assert len(report.memory_table(memory).rows) == 7


def test_bars_are_as_long_as_the_memory():
  shapes, found, memory = of()
  parts = plots.parts(memory, found)
  assert parts.sum(0)[1] * 2**30 == memory.peak
  lost = dataclasses.replace(found[0], refused='no')
  figure = plots.memory_figure(memory, [lost, found[1]])
  assert isinstance(figure, Figure)
  (axes,) = figure.axes
  ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
  assert np.isclose(max(ends) * 2**30, memory.peak)
