"""Scores of texts, by rules that are the same for every method.

  gsm8k, math_reasoning    the share of right final numbers
  cnn_dm, summarization    ROUGE-1, -2 and -L (F1), with the package rouge-score

Equal texts have equal scores: so scores tell a broken run from a sound one. Code
(humaneval, mbpp) is not scored, since that would run code that a model wrote.
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

Rouge = Callable[
  [str, str], Mapping[str, float]
]  # takes a text and a reference
References = Mapping[Id, Sequence[str]]

# A model without a chat template makes up a next question or article.
_NEXT_QUESTION = '\nQuestion:'
_NEXT_ARTICLE = '\nArticle:'
_MARK = '####'
_RESULT = re.compile(re.escape(_MARK) + '|the answer is', re.IGNORECASE)
_NUMBER = re.compile(
  r'(?P<minus>(?<![\w)])[-\u2212])?\$?(?P<digits>'
  r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)'
)


def load_rouge() -> Rouge | None:
  """A function for ROUGE F1 with stemming, as summaries are usually scored.

  None if the package rouge-score is not installed: the [eval] extra has it.
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
  """For each question the references against which its texts are scored.

  Args:
    files: answers, the baseline's first. Files of other methods hold no references:
      a question's references are those of the first file that has some.
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
    answers: answers of one run.
    found: see `references`; an answer's own references go before them.
    rouge: see `load_rouge`; None leaves ROUGE out.

  Returns:
    For each category `texts`, the number of scored texts, and `accuracy` or
    `rouge1`, `rouge2` and `rougeL`, all between 0 and 1.
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
  """The last number after the last `####`, where GSM8K writes its results."""
  _, mark, rest = reference.rpartition(_MARK)
  numbers = _numbers(rest) if mark else []
  return numbers[-1] if numbers else None


def final_number(text: str) -> decimal.Decimal | None:
  """The number that a text gives as its result; None if it has no number.

  It is the first number on the line after `####`, else after `the answer is`, else
  the last number of the text. A next question that the model made up is left out.
  """
  text = text.partition(_NEXT_QUESTION)[0]
  results = sorted(
    _RESULT.finditer(text), key=lambda match: (match[0] != _MARK, match.start())
  )
  for match in results:
    line = text[match.end() :].partition('\n')[0]
    if numbers := _numbers(line):
      return numbers[0]
  numbers = _numbers(text)
  return numbers[-1] if numbers else None


def _numbers(text: str) -> list[decimal.Decimal]:
  """All numbers of a text.

  A `$` before a number, commas of thousands and a full stop after it are ignored.
  """
  return [
    decimal.Decimal(
      ('-' if match['minus'] else '') + match['digits'].replace(',', '')
    )
    for match in _NUMBER.finditer(text)
  ]
