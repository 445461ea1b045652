"""Whether a candidate wrote what the baseline wrote, text by text.

Every text of the baseline is looked for: a file that lacks some is not equal.
Turns, tokens and characters are counted from 0.
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
  """Where two texts part.

  Attributes:
    question_id: whose.
    turn: which of its texts.
    unit: what was compared, tokens or characters.
    index: the first that differs.
    expected, found: token id or character there, of the baseline and of the
      candidate; None where the text has ended.
    expected_text, found_text: what stands around it.
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
  """How many texts are the same.

  Attributes:
    texts: of the baseline; equal + different + missing.
    equal, different: those that both have.
    missing: those that the candidate lacks.
    extra: those that the candidate alone has.
    missing_questions, extra_questions: of which a side has no text at all.
    turn_counts: questions of which both have texts, but not as many.
    differences: of each different text.
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
    """All of the baseline's texts are there and the same."""
    return self.equal == self.texts and not self.turn_counts


def check(baseline: Sequence[Answer], candidate: Sequence[Answer]) -> Equality:
  """Compares by tokens where both record them, else by text."""
  expected = {answer.question_id: answer.turns for answer in baseline}
  found = {answer.question_id: answer.turns for answer in candidate}
  differences, same, missing, extra, turn_counts = [], 0, 0, 0, []
  for question_id in expected | found:
    ours = expected.get(question_id, ())
    theirs = found.get(question_id, ())
    both = list(zip(ours, theirs, strict=False))
    parted = [
      _difference(question_id, turn, *texts) for turn, texts in enumerate(both)
    ]
    same += parted.count(None)
    differences += [difference for difference in parted if difference]
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
  """The first one of two texts."""
  unit, ours, theirs = 'character', expected.text, found.text
  if expected.detail is not None and found.detail is not None:
    unit, ours, theirs = 'token', expected.detail.tokens, found.detail.tokens
  if ours == theirs:
    return None
  index = _parting(ours, theirs)
  at = _parting(expected.text, found.text)
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


def _parting(ours: Sequence, theirs: Sequence) -> int:
  """The first place at which they differ, or one has ended."""
  for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
    if one != other:
      return index
  return min(len(ours), len(theirs))
