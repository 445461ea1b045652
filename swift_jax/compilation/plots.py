"""A picture of a device's memory by part, for each program."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
import numpy as np

from swift_jax.compilation.measure import Compiled
from swift_jax.compilation.report import Memory
from swift_jax.compilation.targets import GIB
from swift_jax.evaluation.report.plots import (
  legend_beside,
  new_figure,
  plain_axes,
)

_COLOURS = {
  'weights': '#0072B2',
  'cache': '#56B4E9',
  'other arguments, padding': '#999999',
  'temporaries, outputs': '#D55E00',
  'code of all programs': '#009E73',
}


def parts(found: Memory, programs: Sequence[Compiled]) -> np.ndarray:
  """GiB by part and program: float[5, P], the parts as the legend has them."""
  new = [one.new for one in programs]
  ones = np.ones(len(new))
  rows = [
    found.weights * ones,
    found.cache * ones,
    found.other * ones,
    np.asarray(new, float),
    found.code * ones,
  ]
  return np.stack(rows) / GIB


def memory_figure(found: Memory, programs: Sequence[Compiled]) -> Figure:
  """A bar for each program beside the device's memory."""
  there = [one for one in programs if not one.refused]
  figure = new_figure(9, 1.2 + 0.4 * len(there))
  axes = plain_axes(figure.subplots())
  left = np.zeros(len(there))
  names = [one.name for one in there]
  for (name, colour), row in zip(
    _COLOURS.items(), parts(found, there), strict=True
  ):
    axes.barh(names, row, left=left, color=colour, label=name)
    left += row
  axes.axvline(found.there / GIB, color='black', label="the device's memory")
  axes.invert_yaxis()
  axes.set_xlabel('GiB of one device')
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure
