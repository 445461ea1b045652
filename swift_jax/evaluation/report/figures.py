"""The figures of a run's answers, each with one definition.

Our figures are totals over totals: all tokens over all seconds, all tokens over all
passes. Beside them stand Spec-Bench's figures, which are means (its speed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from swift_jax.evaluation.answers import Answer, Detail
from swift_jax.runtime.metrics import distinct_ngrams, ratio

NGRAM = 4
LOOP_SHARE = (
  0.5  # a text with a smaller share of distinct 4-grams counts as a loop
)

Id = int | str
CountTokens = Callable[[str], int]


@dataclasses.dataclass(frozen=True)
class Position:
  """Acceptance at one place of the draft.

  Attributes:
    position: the place, from 1.
    passes: number of passes that drafted at least `position` tokens.
    accepted: number of these passes that accepted at least `position` tokens.
    share: accepted / passes.
  """

  position: int
  passes: int
  accepted: int
  share: float


@dataclasses.dataclass(frozen=True)
class Acceptance:
  """Acceptance of drafted tokens.

  Attributes:
    drafted: number of drafted tokens that were verified on the chain.
    accepted: number of these tokens that were returned.
    rate: accepted / drafted; None if nothing was drafted.
    by_position: the acceptance at each place of the longest draft.
  """

  drafted: int
  accepted: int
  rate: float | None
  by_position: tuple[Position, ...]


@dataclasses.dataclass(frozen=True)
class TimeShares:
  """Shares of the wall time; the shares that are not None add up to 1.

  Attributes:
    prefill, search: measured shares.
    decode: measured share; None if it is split into draft and verify.
    draft, verify: the share of decode, split as in the rounds whose halves were
      timed apart; None if no round was.
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
  """Figures of some answers of a run; a figure without a meaning is None.

  Attributes:
    questions, texts: their numbers; each turn has a text.
    new_tokens: tokens of all texts.
    wall_s: seconds of all texts.
    passes: passes of the target.
    tokens_per_second: new_tokens / wall_s.
    mean_tokens_per_second: Spec-Bench's speed, the mean of the questions' speeds.
    mean_accepted_length: new_tokens / passes.
    mean_accept_lengths: Spec-Bench's length, the mean of the recorded lengths.
    acceptance: None if no drafts are recorded, or nothing was drafted.
    time: None if the seconds of the phases are not known.
    distinct_4grams: the distinct 4-grams of each text, summed, over all 4-grams.
    loops: questions with a text whose share of distinct 4-grams is below
      LOOP_SHARE.
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
    answers: answers of one run.
    draft_share: drafting's share of the decode time, see `sampled_draft_share`.
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
  """Spec-Bench's speed: the mean over questions of each question's tokens/s.

  Args:
    answers: answers of one run.
    count_tokens: counts the token ids of a text, as speed.py does for the baseline;
      one is subtracted for each turn. None: the recorded tokens count.
  """
  speeds = []
  for answer in answers:
    tokens = answer.new_tokens
    if count_tokens is not None:
      tokens = sum(count_tokens(turn.text) - 1 for turn in answer.turns)
    speeds.append(ratio(tokens, answer.wall_s))
  return None if None in speeds else ratio(sum(speeds), len(speeds))


def acceptance(answers: Sequence[Answer]) -> Acceptance | None:
  """Acceptance over all passes whose drafts are recorded."""
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
  """Drafting's share of the time of rounds whose halves were timed apart."""
  details = _details(answers)
  draft_s = sum(detail.draft_s for detail in details)
  verify_s = sum(detail.verify_s for detail in details)
  return ratio(draft_s, draft_s + verify_s)


def time_shares(
  answers: Sequence[Answer], draft_share: float | None
) -> TimeShares | None:
  """Each phase's share of the wall time; None if an answer lacks the phases."""
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
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    other=round(1 - prefill - decode - search, 12) + 0.0,
  )


def distinct_4grams(answers: Sequence[Answer]) -> float | None:
  """Each text's distinct 4-grams over all 4-grams, of texts with recorded tokens."""
  counts, distinct = 0, 0.0
  for detail in _details(answers):
    share = distinct_ngrams(detail.tokens, NGRAM)
    if share is not None:
      count = len(detail.tokens) - NGRAM + 1
      counts += count
      distinct += share * count
  return ratio(distinct, counts)


def loops(answers: Sequence[Answer]) -> tuple[Id, ...]:
  """Questions with a text that loops, which flatters every draft."""
  found = []
  for answer in answers:
    shares = [distinct_ngrams(d.tokens, NGRAM) for d in _details([answer])]
    if any(share is not None and share < LOOP_SHARE for share in shares):
      found.append(answer.question_id)
  return tuple(found)


def _details(answers: Sequence[Answer]) -> list[Detail]:
  """The recorded details of all turns."""
  return [
    turn.detail
    for answer in answers
    for turn in answer.turns
    if turn.detail is not None
  ]
