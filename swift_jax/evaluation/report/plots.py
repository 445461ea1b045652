"""Figures of a search, from its record.

Functions that return arrays compute the data; the functions of the figures only draw
it. A figure belongs to its caller alone: pyplot, with its global list of figures and
its choice of a window system, is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis as Scale
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
import numpy as np

from swift_jax.model import skip_mask
from swift_jax.search.files.records import SOURCES, Header, PassRecord

Axis = Literal['evaluations', 'seconds']

# Okabe and Ito's colours, which colour-blind readers can tell apart; the shapes can
# be told apart in grey too. The rarest source has yellow, which is faint on white.
_MARKS = {
  'incumbent': ('#000000', 'o'),
  'start': ('#E69F00', 'P'),
  'random': ('#56B4E9', 's'),
  'neighbour': ('#009E73', '^'),
  'sensitivity': ('#CC79A7', 'D'),
  'gp': ('#D55E00', 'v'),
  'paper': ('#F0E442', 'X'),
  'cached': ('#0072B2', '*'),
}
_STRIP = ('#333333', '#dddddd')  # runs, skipped
_X_LABELS = {
  'evaluations': 'masks scored',
  'seconds': 'seconds of prompts, rounds and search',
}
_SHARE = 'matchness (share of positions hit)'


class Candidates(NamedTuple):
  """The N masks that were scored, as dots.

  Attributes:
    x: evaluations or seconds at the end of the mask's pass, float[N].
    shares: the mask's hits over positions, float[N].
    sources: the source that proposed the mask, str[N].
  """

  x: np.ndarray
  shares: np.ndarray
  sources: np.ndarray


class Incumbent(NamedTuple):
  """The mask that drafts, after each of P passes.

  Attributes:
    x: evaluations or seconds, float[P].
    matchness: its estimated share of hits, float[P]; NaN without an estimate.
    stddev: standard deviation of the estimate, float[P]; NaN without one.
  """

  x: np.ndarray
  matchness: np.ndarray
  stddev: np.ndarray


class SourceRow(NamedTuple):
  """The results of one source of masks.

  Attributes:
    source: the source's name.
    proposed: number of its masks that were scored.
    became_incumbent: how often one of its masks took the incumbent's place.
    mean_share, best_share: mean and best of its masks' hits over positions; None if
      none of its masks was scored.
  """

  source: str
  proposed: int
  became_incumbent: int
  mean_share: float | None
  best_share: float | None


def candidates(passes: Sequence[PassRecord], axis: Axis) -> Candidates:
  """Every mask that was scored, in the order of the passes."""
  dots = [
    (getattr(record, axis), share, source)
    for record in passes
    for share, source in zip(record.shares(), record.sources, strict=True)
  ]
  x, shares, sources = zip(*dots, strict=True) if dots else ((), (), ())
  return Candidates(
    np.array(x, float), np.array(shares, float), np.array(sources, str)
  )


def incumbents(passes: Sequence[PassRecord], axis: Axis) -> Incumbent:
  """The incumbent's estimated matchness after each pass."""
  # None becomes NaN.
  return Incumbent(
    np.array([getattr(record, axis) for record in passes], float),
    np.array([record.matchness for record in passes], float),
    np.array([record.stddev for record in passes], float),
  )


def restarts(passes: Sequence[PassRecord]) -> list[PassRecord]:
  """The passes in which the search began anew, because the text had drifted."""
  return [record for record in passes if record.event == 'restart']


def skipped_rows(header: Header, passes: Sequence[PassRecord]) -> np.ndarray:
  """The sublayers that the incumbent skips: bool[2, L, P], attention first."""
  bits = [[digit == '1' for digit in record.incumbent] for record in passes]
  free = skip_mask.num_free(header.num_layers)
  mask = skip_mask.from_bits(np.reshape(np.array(bits, bool), (-1, free)))
  return np.stack([mask.attn.T, mask.mlp.T])


def source_table(passes: Sequence[PassRecord]) -> list[SourceRow]:
  """The results of each source, in the order of `SOURCES`.

  Sources without a mask are left out. The first pass's incumbent counts as having
  taken the incumbent's place.
  """
  shares = {source: [] for source in SOURCES}
  taken = dict.fromkeys(SOURCES, 0)
  before = None
  for record in passes:
    for source, share in zip(record.sources, record.shares(), strict=True):
      shares[source].append(share)
    taken[record.incumbent_source] += record.incumbent != before
    before = record.incumbent
  return [
    SourceRow(
      source,
      len(found),
      taken[source],
      sum(found) / len(found) if found else None,
      max(found, default=None),
    )
    for source, found in shares.items()
    if found or taken[source]
  ]


def matchness_over(
  passes: Sequence[PassRecord], axis: Axis = 'evaluations'
) -> Figure:
  """Draws a dot for each mask's score, and a line for the incumbent's estimate."""
  figure = new_figure(8, 4.5)
  axes = plain_axes(figure.subplots())
  _scatter(axes, candidates(passes, axis))
  line = incumbents(passes, axis)
  low, high = line.matchness - line.stddev, line.matchness + line.stddev
  axes.fill_between(line.x, low, high, color='black', alpha=0.2, linewidth=0)
  axes.plot(
    line.x,
    line.matchness,
    color='black',
    marker='.',  # a line needs two estimates, a dot only one
    markersize=4,
    label='estimate of the\nincumbent,\n± 1 stddev',
  )
  _mark_restarts(
    axes, [getattr(record, axis) for record in restarts(passes)], '#555555'
  )
  axes.set(xlabel=_X_LABELS[axis], ylabel=_SHARE)
  axes.set_title('What each mask scored, by its source')
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure


def skip_set_strip(header: Header, passes: Sequence[PassRecord]) -> Figure:
  """Draws the incumbent over the passes: a row a sublayer, light if skipped."""
  numbers = [record.number for record in passes]
  # A set drafts until the next pass, even if the passes' numbers have a gap.
  edges = np.array([*numbers, numbers[-1] + 1]) - 0.5
  layers = np.arange(header.num_layers + 1) - 0.5
  figure = new_figure(8, min(10.0, 3 + 0.2 * header.num_layers))
  both = figure.subplots(2, 1, sharex=True)
  names = ('attention', 'MLP')
  rows = skipped_rows(header, passes)
  for axes, name, skipped in zip(both, names, rows, strict=True):
    axes.pcolormesh(
      edges, layers, skipped, cmap=ListedColormap(_STRIP), vmin=0, vmax=1
    )
    axes.set_ylabel(f'{name}, layer')
    whole_numbers(axes.yaxis)
    _mark_restarts(
      axes, [record.number - 0.5 for record in restarts(passes)], '#D55E00'
    )
  both[0].set_title('The skip set that drafts after each pass')
  both[1].set_xlabel('scoring pass')
  whole_numbers(both[1].xaxis)
  lines, labels = axes.get_legend_handles_labels()
  patches = [Patch(color=color) for color in _STRIP]
  legend_beside(figure, [*patches, *lines], ['runs', 'skipped', *labels])
  return figure


def found_by_source(passes: Sequence[PassRecord]) -> Figure:
  """Draws each source's number of masks, of incumbents, and its masks' shares."""
  table = source_table(passes)
  rows = np.arange(len(table))
  figure = new_figure(9, 1.6 + 0.35 * len(table))
  panels = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.5))
  for axes in panels:
    plain_axes(axes)
  counts = ('proposed', 'became_incumbent')
  titles = ('masks scored', 'times it became the incumbent')
  colors = [_MARKS[row.source][0] for row in table]
  for axes, name, title in zip(panels, counts, titles, strict=False):
    bars = axes.barh(rows, [getattr(row, name) for row in table], color=colors)
    axes.bar_label(bars, padding=3)
    axes.margins(x=0.2)
    axes.set_xlabel(title)
    whole_numbers(axes.xaxis)
  _draw_shares(panels[2], table)
  panels[0].set_yticks(rows, [row.source for row in table])
  panels[0].invert_yaxis()
  return figure


def _draw_shares(axes: Axes, table: Sequence[SourceRow]) -> None:
  """Draws mean and best share of each source, joined by a line."""
  # None becomes NaN.
  means = np.array([row.mean_share for row in table], float)
  bests = np.array([row.best_share for row in table], float)
  rows = np.arange(len(table))
  axes.hlines(rows, means, bests, color='#888888')
  axes.plot(means, rows, 'o', color='black', label='mean')
  axes.plot(bests, rows, 'D', color='black', fillstyle='none', label='best')
  axes.set_xlabel('share of positions hit')
  axes.legend(
    frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2
  )


def _scatter(axes: Axes, dots: Candidates) -> None:
  for source in SOURCES:
    mine = dots.sources == source
    if mine.any():
      color, marker = _MARKS[source]
      axes.scatter(
        dots.x[mine],
        dots.shares[mine],
        s=18,
        color=color,
        marker=marker,
        alpha=0.7,
        edgecolors='#555555',
        linewidths=0.3,
        label=source,
      )


def _mark_restarts(axes: Axes, x: Sequence[float], color: str) -> None:
  for number, at in enumerate(x):
    label = '_' if number else 'restart'  # the legend shows only one
    axes.axvline(at, color=color, linestyle='--', label=label)


def new_figure(width: float, height: float) -> Figure:
  """A new figure, sized in inches, that pyplot does not know."""
  return Figure(figsize=(width, height), dpi=150, layout='constrained')


def plain_axes(axes: Axes) -> Axes:
  """Gives axes a faint grid behind the data, and no box around it."""
  axes.grid(True, color='#e6e6e6')
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  return axes


def whole_numbers(axis: Scale) -> None:
  """Keeps an axis of counts from having ticks between whole numbers."""
  axis.set_major_locator(MaxNLocator('auto', integer=True, steps=[1, 2, 5, 10]))


def legend_beside(
  figure: Figure, handles: Sequence, labels: Sequence[str]
) -> None:
  """Puts the legend beside the axes, where it never hides data."""
  figure.legend(handles, labels, loc='outside right upper', frameon=False)
