"""Figures of the rounds of evaluation runs: their drafts, and their time.

As in `plots`, functions that return arrays compute the data, and the functions of
the figures only draw it.
"""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure
import numpy as np

from swift_jax.evaluation.report.contents import Report
from swift_jax.evaluation.report.plots import (
  legend_beside,
  new_figure,
  plain_axes,
  whole_numbers,
)
from swift_jax.evaluation.report.run_plots import run_label, run_style

# Okabe and Ito's colours; in grey the hatches tell the phases apart.
_PHASES = {
  'prefill': ('#999999', ''),
  'decode': ('#0072B2', ''),
  'draft': ('#E69F00', '///'),
  'verify': ('#56B4E9', ''),
  'search': ('#009E73', '\\\\\\'),
  'other': ('#CC79A7', 'xxx'),
}


class Places(NamedTuple):
  """Acceptance at N places of the draft.

  Attributes:
    places: places of a token in its draft, from 1, int[N].
    shares: for each place n the passes that accepted at least n tokens, over
      `passes`, float[N].
    passes: for each place n the passes that drafted at least n tokens, int[N].
  """

  places: np.ndarray
  shares: np.ndarray
  passes: np.ndarray


def places(report: Report) -> dict[str, Places]:
  """Acceptance by place in the draft, of each run that has drafted."""
  found = {
    name: run['overall']['acceptance'] for name, run in report['runs'].items()
  }
  return {
    name: Places(
      *(
        np.array([place[key] for place in acceptance['by_position']])
        for key in ('position', 'share', 'passes')
      )
    )
    for name, acceptance in found.items()
    if acceptance is not None
  }


def pass_times(report: Report) -> dict[str, dict[str, float]]:
  """For each run the milliseconds of each phase, for one pass of the target.

  Runs without the seconds of phases are left out, and so are phases that a run does
  not have.
  """
  overall = {name: run['overall'] for name, run in report['runs'].items()}
  return {
    name: {
      phase: 1e3 * share * found['wall_s'] / found['passes']
      for phase, share in found['time'].items()
      if share is not None
    }
    for name, found in overall.items()
    if found['time'] is not None and found['passes']
  }


def pictures(report: Report) -> dict[str, Figure]:
  """The figures for which the runs have data, by the names of their files."""
  figures = {}
  if places(report):
    figures['acceptance_by_position.png'] = acceptance_by_position(report)
  if pass_times(report):
    figures['time_budget.png'] = time_budget(report)
  return figures


def acceptance_by_position(report: Report) -> Figure:
  """Draws the acceptance by place in the draft, above the number of its passes."""
  figure = new_figure(8, 5)
  upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
  candidates = report['candidates']
  for name, found in places(report).items():
    # Candidates have their styles of the other figures, which lack the baseline.
    number = candidates.index(name) if name in candidates else -1
    color, _, marker = run_style(number)
    for axes, y in ((upper, found.shares), (lower, found.passes)):
      axes.plot(
        found.places, y, marker=marker, color=color, label=run_label(name)
      )
  for axes in map(plain_axes, (upper, lower)):
    axes.set_ylim(bottom=0)
  upper.set(ylabel='share that accepted them', ylim=(0, 1))
  lower.set(xlabel='drafted tokens', ylabel='passes with so many')
  upper.set_title('Acceptance by place in the draft')
  whole_numbers(lower.xaxis)
  whole_numbers(lower.yaxis)
  legend_beside(figure, *upper.get_legend_handles_labels())
  return figure


def time_budget(report: Report) -> Figure:
  """Draws the time of a pass of the target and its draft, and their tokens."""
  times = pass_times(report)
  rows = np.arange(len(times))
  figure = new_figure(8, 1.6 + 0.5 * len(times))
  axes = plain_axes(figure.subplots())
  axes.grid(False, axis='y')
  ends = np.zeros(len(times))
  for phase, (color, hatch) in _PHASES.items():
    widths = np.array([parts.get(phase, 0.0) for parts in times.values()])
    if widths.any():
      axes.barh(
        rows,
        widths,
        0.6,
        ends,
        color=color,
        hatch=hatch,
        edgecolor='white',
        label=phase,
      )
      ends += widths
  for row, name, end in zip(rows, times, ends, strict=True):
    length = report['runs'][name]['overall']['mean_accepted_length']
    axes.annotate(
      f'{length:.2f} tokens',
      (end, row),
      (4, 0),
      textcoords='offset points',
      va='center',
    )
  axes.margins(x=0.2)
  axes.set_yticks(rows, map(run_label, times))
  axes.invert_yaxis()
  axes.set_xlabel('milliseconds for a pass, and the tokens that it returned')
  axes.set_title('Time budget of a round')
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure
