"""How much faster a candidate is than the baseline, task by task.

The speedup is that of all tokens over all seconds; `bootstrap` says how far it
hangs on the choice of prompts. Beside it stands Spec-Bench's, a ratio of means.
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

Pair = tuple[Answer, Answer]  # of the baseline and of the candidate


@dataclasses.dataclass(frozen=True)
class Speedup:
  """A candidate against the baseline; None where a figure has no meaning.

  Attributes:
    questions: those that both have; all but Spec-Bench's figures are over them.
    baseline_tokens_per_second, tokens_per_second: total over total.
    speedup: their ratio.
    low, high: its bootstrap interval; None for a single question.
    spec_bench_baseline, spec_bench_candidate: means over the questions of each
      one's own file, in tokens/s.
    spec_bench_speedup: their ratio.
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
    folds_mt_bench: the eight categories of MT-Bench become one task, as in
      Spec-Bench's report.
  """
  tasks: dict[Id, str] = {}
  for answers in files:
    for answer in answers:
      is_part = folds_mt_bench and answer.category in MT_BENCH
      task = 'mt_bench' if is_part else answer.category
      tasks.setdefault(answer.question_id, task)
  return tasks


def by_task(
  answers: Sequence[Answer], tasks: Mapping[Id, str]
) -> dict[str, list[Answer]]:
  """The answers of each task that has any, tasks in the order of `tasks`."""
  groups: dict[str, list[Answer]] = {task: [] for task in tasks.values()}
  for answer in answers:
    groups[tasks[answer.question_id]].append(answer)
  return {task: group for task, group in groups.items() if group}


def pairs(
  baseline: Sequence[Answer], candidate: Sequence[Answer]
) -> list[Pair]:
  """The questions that both have, in the baseline's order."""
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
  """How much faster the candidate is.

  Args:
    baseline, candidate: answers, of one task or of all.
    seed: of the bootstrap.
    count_tokens: see `mean_speed`; for the baseline alone, as speed.py does.
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
  """Percentile interval of the speedup over draws of as many prompts.

  The same prompts are drawn for both. Draws without a speedup, since a time or
  the baseline's tokens add up to 0, are left out.

  Args:
    tokens, seconds: of a prompt each, baseline and candidate: float[N, 2].
    seed: of the draws.
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
