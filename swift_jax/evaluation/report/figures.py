"""What the answers of a run cost, each figure with one definition.

Ours are totals over totals: all tokens over all seconds, all tokens over all
passes. Beside them stand Spec-Bench's, which are means (its speed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from swift_jax.evaluation.answers import Answer, Detail
from swift_jax.runtime.metrics import distinct_ngrams, ratio

NGRAM = 4
LOOP_SHARE = 0.5  # a text with fewer distinct 4-grams is said to loop

Id = int | str
CountTokens = Callable[[str], int]


@dataclasses.dataclass(frozen=True)
class Position:
  """Acceptance at one place of the draft, the first being 1.

  Attributes:
    position: which.
    passes: that drafted at least so many tokens.
    accepted: those of them that accepted at least so many.
    share: accepted / passes.
  """

  position: int
  passes: int
  accepted: int
  share: float


@dataclasses.dataclass(frozen=True)
class Acceptance:
  """What became of drafted tokens.

  Attributes:
    drafted: tokens that were verified on the chain.
    accepted: those that were returned.
    rate: accepted / drafted; None where nothing was drafted.
    by_position: for each place of the longest draft.
  """

  drafted: int
  accepted: int
  rate: float | None
  by_position: tuple[Position, ...]


@dataclasses.dataclass(frozen=True)
class TimeShares:
  """Shares of the wall time; those that are not None add up to 1.

  Attributes:
    prefill, search: measured.
    decode: measured; None where it is split in two.
    draft, verify: decode split as in the sample of rounds whose halves were
      timed apart; None without a sample.
    other: the rest.
  """

  prefill: float
  decode: float | None
  draft: float | None
  verify: float | None
  search: float
  other: float


@dataclasses.dataclass(frozen=True)
class Figures:
  """What some answers of a run cost; None where a figure has no meaning.

  Attributes:
    questions, texts: how many; a text a turn.
    new_tokens: tokens of all texts.
    wall_s: seconds of all texts.
    passes: of the target.
    tokens_per_second: new_tokens / wall_s.
    mean_tokens_per_second: Spec-Bench's: the mean of each question's.
    mean_accepted_length: new_tokens / passes.
    mean_accept_lengths: Spec-Bench's: the mean of the recorded lengths.
    acceptance: None where nothing is known of drafts, or nothing was drafted.
    time: None where the phases are not known.
    distinct_4grams: distinct 4-grams of each text, over all 4-grams.
    loops: questions with a text whose share of them is below LOOP_SHARE.
  """

  questions: int
  texts: int
  new_tokens: int
  wall_s: float
  passes: int
  tokens_per_second: float | None
  mean_tokens_per_second: float | None
  mean_accepted_length: float | None
  mean_accept_lengths: float | None
  acceptance: Acceptance | None
  time: TimeShares | None
  distinct_4grams: float | None
  loops: tuple[Id, ...]


def figures(
  answers: Sequence[Answer], draft_share: float | None = None
) -> Figures:
  """All figures of some answers.

  Args:
    answers: of one run.
    draft_share: of the decode time, see `sampled_draft_share`.
  """
  new_tokens = sum(answer.new_tokens for answer in answers)
  wall_s = sum(answer.wall_s for answer in answers)
  passes = sum(turn.steps for answer in answers for turn in answer.turns)
  lengths = [n for answer in answers for n in answer.accept_lengths]
  return Figures(
    questions=len(answers),
    texts=sum(len(answer.turns) for answer in answers),
    new_tokens=new_tokens,
    wall_s=wall_s,
    passes=passes,
    tokens_per_second=ratio(new_tokens, wall_s),
    mean_tokens_per_second=mean_speed(answers),
    mean_accepted_length=ratio(new_tokens, passes),
    mean_accept_lengths=ratio(sum(lengths), len(lengths)),
    acceptance=acceptance(answers),
    time=time_shares(answers, draft_share),
    distinct_4grams=distinct_4grams(answers),
    loops=loops(answers),
  )


def mean_speed(
  answers: Sequence[Answer], count_tokens: CountTokens | None = None
) -> float | None:
  """Spec-Bench's tokens/s: the mean over questions of each one's.

  Args:
    answers: of one run.
    count_tokens: how speed.py counts the baseline: ids of a text, of which it
      takes one away for each turn. None: the recorded tokens.
  """
  speeds = []
  for answer in answers:
    tokens = answer.new_tokens
    if count_tokens is not None:
      tokens = sum(count_tokens(turn.text) - 1 for turn in answer.turns)
    speeds.append(ratio(tokens, answer.wall_s))
  return None if None in speeds else ratio(sum(speeds), len(speeds))


def acceptance(answers: Sequence[Answer]) -> Acceptance | None:
  """Over all passes whose drafts are recorded."""
  details = _details(answers)
  drafted = np.array([n for detail in details for n in detail.drafted], int)
  accepted = np.array([n for detail in details for n in detail.accepted], int)
  if not drafted.any():
    return None
  positions = []
  for position in range(1, int(drafted.max()) + 1):
    tried = int((drafted >= position).sum())
    right = int((accepted >= position).sum())
    positions.append(Position(position, tried, right, right / tried))
  total, right = int(drafted.sum()), int(accepted.sum())
  return Acceptance(total, right, right / total, tuple(positions))


def sampled_draft_share(answers: Sequence[Answer]) -> float | None:
  """Drafting's share of those rounds whose halves were timed apart."""
  details = _details(answers)
  draft_s = sum(detail.draft_s for detail in details)
  verify_s = sum(detail.verify_s for detail in details)
  return ratio(draft_s, draft_s + verify_s)


def time_shares(
  answers: Sequence[Answer], draft_share: float | None
) -> TimeShares | None:
  """Where the wall time went; None where an answer does not say."""
  details = _details(answers)
  wall_s = sum(answer.wall_s for answer in answers)
  if not wall_s or len(details) < sum(len(answer.turns) for answer in answers):
    return None
  prefill = sum(detail.prefill_s for detail in details) / wall_s
  decode = sum(detail.decode_s for detail in details) / wall_s
  search = sum(detail.search_s for detail in details) / wall_s
  split = draft_share is not None
  return TimeShares(
    prefill=prefill,
    decode=None if split else decode,
    draft=decode * draft_share if split else None,
    verify=decode * (1 - draft_share) if split else None,
    search=search,
    # No -0.0 out of rounding.
    other=round(1 - prefill - decode - search, 12) + 0.0,
  )


def distinct_4grams(answers: Sequence[Answer]) -> float | None:
  """Distinct 4-grams of each text over all, where tokens are recorded."""
  counts, distinct = 0, 0.0
  for detail in _details(answers):
    share = distinct_ngrams(detail.tokens, NGRAM)
    if share is not None:
      count = len(detail.tokens) - NGRAM + 1
      counts += count
      distinct += share * count
  return ratio(distinct, counts)


def loops(answers: Sequence[Answer]) -> tuple[Id, ...]:
  """Questions with a text that repeats itself: it flatters every draft."""
  found = []
  for answer in answers:
    shares = [distinct_ngrams(d.tokens, NGRAM) for d in _details([answer])]
    if any(share is not None and share < LOOP_SHARE for share in shares):
      found.append(answer.question_id)
  return tuple(found)


def _details(answers: Sequence[Answer]) -> list[Detail]:
  """Those that there are."""
  return [
    turn.detail
    for answer in answers
    for turn in answer.turns
    if turn.detail is not None
  ]
