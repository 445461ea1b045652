"""How good texts are, by rules that are the same for every method.

  gsm8k, math_reasoning    the share of right final numbers
  cnn_dm, summarization    ROUGE-1, -2 and -L (F1), with the package rouge-score

Where the texts are equal the scores are: they tell a broken run from a sound
one. Code (humaneval, mbpp) is not scored, since that runs what a model wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import decimal
import re

from swift_jax.evaluation.answers import Answer
from swift_jax.evaluation.report.figures import Id

NUMBERS = ('gsm8k', 'math_reasoning')
SUMMARIES = ('cnn_dm', 'summarization')
_ROUGE = ('rouge1', 'rouge2', 'rougeL')

Rouge = Callable[[str, str], Mapping[str, float]]  # of a text and a reference
References = Mapping[Id, Sequence[str]]

# A model without a chat template goes on with a question or article of its own.
_NEXT_QUESTION = '\nQuestion:'
_NEXT_ARTICLE = '\nArticle:'
_MARK = '####'
_SAID = re.compile(re.escape(_MARK) + '|the answer is', re.IGNORECASE)
_NUMBER = re.compile(
  r'(?P<minus>(?<![\w)])[-\u2212])?\$?(?P<digits>'
  r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)'
)


def load_rouge() -> Rouge | None:
  """ROUGE F1 with stemming, as summaries are usually scored.

  None where the package rouge-score is not installed: the [eval] extra has it.
  """
  try:
    from rouge_score.rouge_scorer import RougeScorer
  except ImportError:
    return None
  scorer = RougeScorer(_ROUGE, use_stemmer=True)

  def rouge(text: str, reference: str) -> dict[str, float]:
    found = scorer.score(target=reference, prediction=text)
    return {name: score.fmeasure for name, score in found.items()}

  return rouge


def references(files: Sequence[Sequence[Answer]]) -> dict[Id, tuple[str, ...]]:
  """What the texts of each question are scored against.

  Args:
    files: the baseline's answers first. Files of other methods hold no
      references: theirs are those of the first file that has some.
  """
  found: dict[Id, tuple[str, ...]] = {}
  for answers in files:
    for answer in answers:
      if answer.reference:
        found.setdefault(answer.question_id, answer.reference)
  return found


def needs_rouge(answers: Sequence[Answer], found: References) -> bool:
  """Whether a summary and its reference are among the answers."""
  return any(
    answer.category in SUMMARIES and answer.question_id in found
    for answer in answers
  )


def score(
  answers: Sequence[Answer], found: References, rouge: Rouge | None
) -> dict[str, dict[str, float]]:
  """The mean scores of each category that has a rule and references.

  Args:
    answers: of one run.
    found: see `references`; an answer's own count before them.
    rouge: see `load_rouge`; None leaves ROUGE out.

  Returns:
    For each category `texts`, how many were scored, and `accuracy` or `rouge1`,
    `rouge2` and `rougeL`, all between 0 and 1.
  """
  scored: dict[str, list[Mapping[str, float]]] = {}
  for answer in answers:
    against = answer.reference or found.get(answer.question_id, ())
    for turn, reference in zip(answer.turns, against, strict=False):
      values = _score(answer.category, turn.text, reference, rouge)
      if values is not None:
        scored.setdefault(answer.category, []).append(values)
  return {
    category: {
      'texts': len(rows),
      **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]},
    }
    for category, rows in scored.items()
  }


def _score(
  category: str, text: str, reference: str, rouge: Rouge | None
) -> Mapping[str, float] | None:
  if category in NUMBERS:
    wanted = reference_number(reference)
    if wanted is not None:
      return {'accuracy': float(final_number(text) == wanted)}
  if category in SUMMARIES and rouge is not None and reference.strip():
    return rouge(text.partition(_NEXT_ARTICLE)[0], reference)
  return None


def reference_number(reference: str) -> decimal.Decimal | None:
  """The last number behind the last `####`, as GSM8K writes its results."""
  _, mark, rest = reference.rpartition(_MARK)
  numbers = _numbers(rest) if mark else []
  return numbers[-1] if numbers else None


def final_number(text: str) -> decimal.Decimal | None:
  """What a text gives as its result; None where it has no number.

  The first number on the line behind `####`, else behind `the answer is`, else
  the last of all; a further question that the model made up is left out.
  """
  text = text.partition(_NEXT_QUESTION)[0]
  said = sorted(
    _SAID.finditer(text), key=lambda match: (match[0] != _MARK, match.start())
  )
  for match in said:
    line = text[match.end() :].partition('\n')[0]
    if numbers := _numbers(line):
      return numbers[0]
  numbers = _numbers(text)
  return numbers[-1] if numbers else None


def _numbers(text: str) -> list[decimal.Decimal]:
  """All numbers; `$`, thousands' commas and a full stop behind do not count."""
  return [
    decimal.Decimal(
      ('-' if match['minus'] else '') + match['digits'].replace(',', '')
    )
    for match in _NUMBER.finditer(text)
  ]
