"""The speedup of a candidate over the baseline, task by task.

A speed is all tokens over all seconds, and the speedup is the ratio of two speeds.
`bootstrap` says how much the speedup depends on the choice of prompts. Beside it
stands Spec-Bench's speedup, a ratio of means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

import numpy as np

from swift_jax.evaluation.answers import Answer
from swift_jax.evaluation.report.figures import CountTokens, Id, mean_speed
from swift_jax.runtime.metrics import ratio

RESAMPLES = 2000
CONFIDENCE = 0.95
MT_BENCH = (
  'writing',
  'roleplay',
  'reasoning',
  'math',
  'coding',
  'extraction',
  'stem',
  'humanities',
)

Pair = tuple[Answer, Answer]  # the baseline's and the candidate's answer


@dataclasses.dataclass(frozen=True)
class Speedup:
  """A candidate against the baseline; a figure without a meaning is None.

  Attributes:
    questions: number of questions that both have. All figures are over them, except
      Spec-Bench's.
    baseline_tokens_per_second, tokens_per_second: all tokens over all seconds.
    speedup: the ratio of these speeds.
    low, high: bootstrap interval of the speedup; None for a single question.
    spec_bench_baseline, spec_bench_candidate: mean of the questions' speeds in
      tokens/s, each over all questions of its own file.
    spec_bench_speedup: the ratio of these means.
  """

  questions: int
  baseline_tokens_per_second: float | None
  tokens_per_second: float | None
  speedup: float | None
  low: float | None
  high: float | None
  spec_bench_baseline: float | None
  spec_bench_candidate: float | None
  spec_bench_speedup: float | None


def task_names(
  files: Iterable[Sequence[Answer]], folds_mt_bench: bool
) -> dict[Id, str]:
  """The task of every question: its category in the first file that has it.

  Args:
    files: answers of the baseline, then of the candidates.
    folds_mt_bench: make one task of the eight categories of MT-Bench, as
      Spec-Bench's report does.
  """
  tasks: dict[Id, str] = {}
  for answers in files:
    for answer in answers:
      is_folded = folds_mt_bench and answer.category in MT_BENCH
      task = 'mt_bench' if is_folded else answer.category
      tasks.setdefault(answer.question_id, task)
  return tasks


def by_task(
  answers: Sequence[Answer], tasks: Mapping[Id, str]
) -> dict[str, list[Answer]]:
  """The answers by task, in the order of `tasks`; a task without any is left out."""
  groups: dict[str, list[Answer]] = {task: [] for task in tasks.values()}
  for answer in answers:
    groups[tasks[answer.question_id]].append(answer)
  return {task: group for task, group in groups.items() if group}


def pairs(
  baseline: Sequence[Answer], candidate: Sequence[Answer]
) -> list[Pair]:
  """The answer pairs of questions that both have, in the baseline's order."""
  found = {answer.question_id: answer for answer in candidate}
  return [
    (answer, found[answer.question_id])
    for answer in baseline
    if answer.question_id in found
  ]


def compare(
  baseline: Sequence[Answer],
  candidate: Sequence[Answer],
  seed: int = 0,
  count_tokens: CountTokens | None = None,
) -> Speedup:
  """Computes the candidate's speedup.

  Args:
    baseline, candidate: their answers, of one task or of all tasks.
    seed: seed of the bootstrap.
    count_tokens: see `mean_speed`; it counts for the baseline alone, as in
      Spec-Bench's speed.py.
  """
  both = pairs(baseline, candidate)
  tokens = np.array([[a.new_tokens for a in pair] for pair in both], float)
  seconds = np.array([[a.wall_s for a in pair] for pair in both], float)
  tokens, seconds = tokens.reshape(-1, 2), seconds.reshape(-1, 2)
  speeds = [
    ratio(float(count), float(time))
    for count, time in zip(tokens.sum(0), seconds.sum(0), strict=True)
  ]
  low, high = bootstrap(tokens, seconds, seed)
  means = (mean_speed(baseline, count_tokens), mean_speed(candidate))
  return Speedup(
    len(both), *speeds, _quotient(*speeds), low, high, *means, _quotient(*means)
  )


def bootstrap(
  tokens: np.ndarray, seconds: np.ndarray, seed: int
) -> tuple[float, float] | tuple[None, None]:
  """Percentile interval of the speedup over draws of N prompts with replacement.

  Each draw takes the same prompts for baseline and candidate. A draw has no speedup
  if a time or the baseline's tokens add up to 0; such draws are left out.

  Args:
    tokens, seconds: for each prompt those of baseline and candidate: float[N, 2].
    seed: seed of the draws.
  """
  if len(tokens) < 2:
    return None, None
  rng = np.random.default_rng(seed)
  ratios = []
  for _ in range(RESAMPLES):
    drawn = rng.integers(len(tokens), size=len(tokens))
    count, time = tokens[drawn].sum(0), seconds[drawn].sum(0)
    if time.all() and count[0]:
      ratios.append(count[1] / time[1] / (count[0] / time[0]))
  if not ratios:
    return None, None
  tail = 50 * (1 - CONFIDENCE)
  low, high = np.percentile(ratios, [tail, 100 - tail])
  return float(low), float(high)


def _quotient(baseline: float | None, candidate: float | None) -> float | None:
  return None if None in (baseline, candidate) else ratio(candidate, baseline)
