"""Figures of evaluation runs.

As in `plots`, functions that return arrays compute the data, and the functions of
the figures only draw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from swift_jax.evaluation.answers import Answer
from swift_jax.evaluation.report import comparison
from swift_jax.evaluation.report.contents import Report
from swift_jax.evaluation.report.plots import (
  legend_beside,
  new_figure,
  plain_axes,
  whole_numbers,
)

ROLLING = 20  # number of questions in the rolling speedup
# Okabe and Ito's colours without black and yellow; in grey hatches and markers tell
# the runs apart.
_STYLES = (
  ('#0072B2', '', 'o'),
  ('#E69F00', '///', 's'),
  ('#009E73', '...', '^'),
  ('#CC79A7', 'xxx', 'D'),
  ('#56B4E9', '\\\\\\', 'v'),
  ('#D55E00', '++', 'P'),
)

Answers = Sequence[Answer]


class Bars(NamedTuple):
  """Speedups of one candidate.

  Attributes:
    speedups: the speedup of each task, and at the end of all tasks together,
      float[N]; NaN without a speedup.
    low, high: the speedups' intervals, float[N]; NaN without an interval.
  """

  speedups: np.ndarray
  low: np.ndarray
  high: np.ndarray


class Stream(NamedTuple):
  """The speedup after each of N questions; NaN if it has no meaning.

  Attributes:
    cumulative: over all questions up to each question, float[N].
    rolling: over the last `ROLLING` questions, at first over fewer, float[N].
  """

  cumulative: np.ndarray
  rolling: np.ndarray


def bars(report: Report, candidate: str) -> Bars:
  """The speedups of a candidate, with tasks in the report's order."""
  compared = report['comparisons'][candidate]
  tasks = [compared['tasks'].get(task, {}) for task in report['tasks']]
  # None becomes NaN.
  return Bars(
    *(
      np.array([row.get(name) for row in (*tasks, compared['overall'])], float)
      for name in ('speedup', 'low', 'high')
    )
  )


def length_shares(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
  """The numbers of tokens that passes returned, int[N], and the shares of passes."""
  lengths = [n for answer in answers for n in answer.accept_lengths]
  values, counts = np.unique(np.array(lengths, int), return_counts=True)
  return values, counts / max(1, len(lengths))


def stream(baseline: Answers, candidate: Answers, window: int) -> Stream:
  """The speedup over the questions of both, in the order of the candidate's answers.

  Args:
    baseline, candidate: their answers.
    window: number of questions in the rolling speedup.
  """
  pairs = comparison.pairs(baseline, candidate)
  pairs.sort(key=lambda pair: pair[1].tstamp)
  tokens = [[answer.new_tokens for answer in pair] for pair in pairs]
  seconds = [[answer.wall_s for answer in pair] for pair in pairs]
  sums = [
    np.cumsum(np.vstack([np.zeros((1, 2)), np.reshape(rows, (-1, 2))]), axis=0)
    for rows in (tokens, seconds)
  ]
  ends = np.arange(1, len(pairs) + 1)
  return Stream(
    *(
      _speedups(*(rows[ends] - rows[starts] for rows in sums))
      for starts in (np.zeros_like(ends), np.maximum(ends - window, 0))
    )
  )


def _speedups(tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
  """The speedup of each row of (baseline, candidate)."""
  with np.errstate(divide='ignore', invalid='ignore'):
    found = tokens[:, 1] / seconds[:, 1] / (tokens[:, 0] / seconds[:, 0])
  return np.where(np.isfinite(found), found, np.nan)


def speedup_bars(report: Report) -> Figure:
  """Draws a bar with its interval for each task and candidate."""
  names = [*report['tasks'], 'overall']
  places = np.arange(len(names))
  candidates = report['candidates']
  width = 0.8 / len(candidates)
  figure = new_figure(
    max(6, 2 + len(names) * (0.5 + 0.25 * len(candidates))), 4
  )
  axes = plain_axes(figure.subplots())
  for i, name in enumerate(candidates):
    found = bars(report, name)
    x = places + (i - (len(candidates) - 1) / 2) * width
    _draw_bars(axes, x, found.speedups, width * 0.9, i, name)
    axes.vlines(x, found.low, found.high, color='black')
  axes.axhline(1, color='#555555', linestyle='--')
  axes.set_xticks(places, map(run_label, names), rotation=30, ha='right')
  axes.set_ylabel('speedup (1: as the baseline)')
  share = f'{report["confidence"]:.0%}'
  title = f'Tokens/s against {report["baseline"]}, with {share} intervals'
  axes.set_title(run_label(title))
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure


def accepted_lengths(runs: Mapping[str, Answers]) -> Figure:
  """Draws how many tokens a pass of the target returned, a colour for each run."""
  figure = new_figure(8, 4)
  axes = plain_axes(figure.subplots())
  width = 0.8 / len(runs)
  for i, (name, answers) in enumerate(runs.items()):
    lengths, shares = length_shares(answers)
    x = lengths + (i - (len(runs) - 1) / 2) * width
    _draw_bars(axes, x, shares, width, i, name)
  axes.set(xlabel='tokens that a pass returned', ylabel='share of passes')
  axes.set_title('Accepted lengths')
  whole_numbers(axes.xaxis)
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure


def speedup_over_stream(
  baseline: Answers, runs: Mapping[str, Answers]
) -> Figure:
  """Draws the speedup over the questions, in the order of each run's answers."""
  figure = new_figure(8, 4)
  axes = plain_axes(figure.subplots())
  for i, (name, answers) in enumerate(runs.items()):
    found = stream(baseline, answers, ROLLING)
    color, _, marker = run_style(i)
    x = np.arange(1, len(found.cumulative) + 1)
    curves = [('so far', found.cumulative, '-')]
    if len(x) > ROLLING:  # else both curves are the same
      curves.append((f'last {ROLLING}', found.rolling, ':'))
    for kind, y, style in curves:
      label = f'{run_label(name)}, {kind}'
      axes.plot(
        x, y, style, marker=marker, markersize=4, color=color, label=label
      )
  axes.axhline(1, color='#555555', linestyle='--')
  axes.set(xlabel='questions answered', ylabel='speedup (1: as the baseline)')
  axes.set_title('Speedup over the stream of questions')
  whole_numbers(axes.xaxis)
  legend_beside(figure, *axes.get_legend_handles_labels())
  return figure


def _draw_bars(
  axes: Axes,
  x: np.ndarray,
  heights: np.ndarray,
  width: float,
  number: int,
  name: str,
) -> None:
  """Draws the bars of one run."""
  color, hatch, _ = run_style(number)
  axes.bar(
    x,
    heights,
    width,
    color=color,
    hatch=hatch,
    edgecolor='white',
    label=run_label(name),
  )


def run_style(number: int) -> tuple[str, str, str]:
  """Colour, hatch and marker of a run."""
  return _STYLES[number % len(_STYLES)]


def run_label(name: str) -> str:
  """A run's name for matplotlib, which reads `$` as math and hides `_name`."""
  name = name.replace('$', r'\$')
  return f' {name}' if name.startswith('_') else name
