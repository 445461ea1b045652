"""Checks whether a candidate's texts equal the baseline's, text by text.

The candidate must have every text of the baseline: a file that lacks some is not
equal. Turns, tokens and characters are counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Literal

from swift_jax.evaluation.answers import Answer, Turn
from swift_jax.evaluation.report.figures import Id

_BEFORE, _BEHIND = 20, 40  # characters shown around a difference


@dataclasses.dataclass(frozen=True)
class Difference:
  """The first difference of two texts.

  Attributes:
    question_id: the question of the texts.
    turn: the number of the texts' turn.
    unit: the unit of the comparison, tokens or characters.
    index: the place of the first unit that differs.
    expected, found: token id or character at that place, of the baseline and of the
      candidate; None if the text has ended.
    expected_text, found_text: the characters around the difference.
  """

  question_id: Id
  turn: int
  unit: Literal['token', 'character']
  index: int
  expected: int | str | None
  found: int | str | None
  expected_text: str
  found_text: str


@dataclasses.dataclass(frozen=True)
class Equality:
  """Counts of equal and different texts.

  Attributes:
    texts: number of the baseline's texts: equal + different + missing.
    equal, different: numbers of texts that both have.
    missing: number of texts that the candidate lacks.
    extra: number of texts that the candidate alone has.
    missing_questions: questions of which the candidate has no text at all.
    extra_questions: questions of which the baseline has no text at all.
    turn_counts: questions of which both have texts, but not equally many.
    differences: the first difference of each different text.
  """

  texts: int
  equal: int
  different: int
  missing: int
  extra: int
  missing_questions: tuple[Id, ...]
  extra_questions: tuple[Id, ...]
  turn_counts: tuple[Id, ...]
  differences: tuple[Difference, ...]

  @property
  def is_identical(self) -> bool:
    """Whether the candidate has all of the baseline's texts, each one equal."""
    return self.equal == self.texts and not self.turn_counts


def check(baseline: Sequence[Answer], candidate: Sequence[Answer]) -> Equality:
  """Compares all texts, by tokens if both files record them, else by characters."""
  expected = {answer.question_id: answer.turns for answer in baseline}
  found = {answer.question_id: answer.turns for answer in candidate}
  differences, same, missing, extra, turn_counts = [], 0, 0, 0, []
  for question_id in expected | found:
    ours = expected.get(question_id, ())
    theirs = found.get(question_id, ())
    both = list(zip(ours, theirs, strict=False))
    found_there = [
      _difference(question_id, turn, *texts) for turn, texts in enumerate(both)
    ]
    same += found_there.count(None)
    differences += [difference for difference in found_there if difference]
    missing += len(ours) - len(both)
    extra += len(theirs) - len(both)
    if both and len(ours) != len(theirs):
      turn_counts.append(question_id)
  return Equality(
    texts=sum(map(len, expected.values())),
    equal=same,
    different=len(differences),
    missing=missing,
    extra=extra,
    missing_questions=tuple(key for key in expected if key not in found),
    extra_questions=tuple(key for key in found if key not in expected),
    turn_counts=tuple(turn_counts),
    differences=tuple(differences),
  )


def _difference(
  question_id: Id, turn: int, expected: Turn, found: Turn
) -> Difference | None:
  """The first difference of two texts; None if they are equal."""
  unit, ours, theirs = 'character', expected.text, found.text
  if expected.detail is not None and found.detail is not None:
    unit, ours, theirs = 'token', expected.detail.tokens, found.detail.tokens
  if ours == theirs:
    return None
  index = _first_difference(ours, theirs)
  at = _first_difference(expected.text, found.text)
  around = slice(max(0, at - _BEFORE), at + _BEHIND)
  return Difference(
    question_id=question_id,
    turn=turn,
    unit=unit,
    index=index,
    expected=ours[index] if index < len(ours) else None,
    found=theirs[index] if index < len(theirs) else None,
    expected_text=expected.text[around],
    found_text=found.text[around],
  )


def _first_difference(ours: Sequence, theirs: Sequence) -> int:
  """The first place at which two sequences differ or one of them has ended."""
  for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
    if one != other:
      return index
  return min(len(ours), len(theirs))
