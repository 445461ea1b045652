"""Scores against examples, and against what made them."""

import dataclasses
import decimal
import sys

import answer_files
from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.evaluation.report import scores

RESULT = 'She has 48/2 = <<48/2=24>>24 clips left.\n#### 24'


@pytest.mark.parametrize(
  'text, number',
  [
    ('#### 42', '42'),
    ('5 and 6 make 11.\n#### 11\nThat is 3 more.', '11'),
    ('####42 of 50', '42'),
    ('#### $1,234.50', '1234.50'),
    ('#### 7.', '7'),
    ('####\n9 apples', '9'),  # nothing behind the mark: the last of all
    ('#### none. The answer is 8, not 9', '8'),
    ('The answer is 8 or so.\n#### 7', '7'),
    ('The answer is $18.', '18'),
    ('So the answer is: -3 degrees, 2 more', '-3'),
    ('3 + 4 = 7, and 7 - 2 = 5.', '5'),
    ('5-3=2', '2'),
    ('from 10-12', '12'),  # a range, no minus
    ('it fell to -$1,000', '-1000'),
    ('it fell to $-5', '-5'),
    ('it fell to \u22125', '-5'),
    ('a share of .25', '0.25'),
    ('1,234,567 in all', '1234567'),
    ('numbers 3,4', '4'),  # a list, no thousands
    ('24 clips.\n\nQuestion: Tom has 3 cats.\nAnswer: 7', '24'),
    ('24 clips.\nQuestion: #### 9', '24'),
    ('no number', None),
    ('', None),
    ('\nQuestion: 3', None),
    ('0' * 6000 + '7', '7'),
  ],
)
def test_the_number_of_a_text(text, number):
  expected = None if number is None else decimal.Decimal(number)
  assert scores.final_number(text) == expected


@pytest.mark.parametrize(
  'reference, number',
  [
    (RESULT, '24'),
    ('#### 1,200', '1200'),
    ('#### -5', '-5'),
    ('#### 3 and 4', '4'),
    ('24', None),
    ('#### many', None),
    ('', None),
  ],
)
def test_the_number_of_a_reference(reference, number):
  expected = None if number is None else decimal.Decimal(number)
  assert scores.reference_number(reference) == expected


NUMBER = st.decimals(
  -(10**9), 10**9, places=2, allow_nan=False, allow_infinity=False
)


@given(NUMBER, st.sampled_from(['{:,}', '{}', '${:,}.', '{:,} dollars']))
def test_a_number_is_read_however_it_is_written(number, form):
  written = form.format(number)
  for text in (f'#### {written}', f'the answer is {written}', f'= {written}'):
    assert scores.final_number(text) == number
  assert scores.reference_number(f'1 + 1\n#### {written}') == number


@given(st.text())
def test_no_text_breaks_the_rule(text):
  scores.final_number(text)
  scores.reference_number(text)


def asked(question_id, category, texts, reference=()):
  """An answer of ours with these texts."""
  turn = answer_files.plain()[0].turns[0]
  return dataclasses.replace(
    answer_files.plain()[0],
    question_id=question_id,
    category=category,
    turns=tuple(dataclasses.replace(turn, text=text) for text in texts),
    reference=reference,
  )


def test_accuracy_is_the_share_of_right_numbers():
  answered = [
    asked(1, 'gsm8k', ['#### 24'], (RESULT,)),
    asked(2, 'gsm8k', ['It is 24.00'], (RESULT,)),
    asked(3, 'gsm8k', ['It is 25'], (RESULT,)),
    asked(4, 'gsm8k', ['I do not know'], (RESULT,)),
    asked(5, 'gsm8k', ['24'], ('no result',)),  # nothing to compare with
    asked(6, 'math_reasoning', ['24'], (RESULT,)),
    asked(7, 'humaneval', ['return 24'], (RESULT,)),
    asked(8, 'gsm8k', ['24']),
  ]
  assert scores.score(answered, {}, None) == {
    'gsm8k': {'texts': 4, 'accuracy': 0.5},
    'math_reasoning': {'texts': 1, 'accuracy': 1.0},
  }


def test_foreign_texts_are_scored_against_others_references():
  own = asked(1, 'gsm8k', ['24'], (RESULT,))
  foreign = dataclasses.replace(own, reference=(), index=None)
  for files in ([[own], [foreign]], [[foreign], [own]]):
    found = scores.references(files)
    assert found == {1: (RESULT,)}
    for answers in files:
      values = scores.score(answers, found, None)
      assert values == {'gsm8k': {'texts': 1, 'accuracy': 1.0}}
  # Of two files of ours the first is the baseline's.
  other = dataclasses.replace(own, reference=('#### 7',))
  assert scores.references([[own], [other]]) == {1: (RESULT,)}


def test_rouge_is_f1_of_words():
  rouge = scores.load_rouge()
  found = rouge('the cat sat down', 'a cat sat')
  # Of 4 and 3 words two are shared, of 3 and 2 pairs one.
  assert found == {
    'rouge1': pytest.approx(2 * 2 / 7),
    'rouge2': pytest.approx(2 * 1 / 5),
    'rougeL': pytest.approx(2 * 2 / 7),
  }
  # In another order the longest common sequence is shorter.
  assert rouge('sat cat', 'cat sat')['rougeL'] == 0.5
  # Stems are compared.
  assert rouge('cats', 'cat')['rouge1'] == 1.0


def test_summaries_are_scored_by_rouge():
  words = 'a cat sat'
  answered = [
    asked(1, 'cnn_dm', [words + '\n\nArticle: The dog'], (words,)),
    asked(2, 'cnn_dm', ['dogs'], (words,)),
    asked(3, 'summarization', [words], (words,)),
    asked(4, 'summarization', [words]),
    asked(5, 'summarization', [words], ('',)),
    asked(6, 'qa', [words], (words,)),
  ]
  half = dict.fromkeys(('rouge1', 'rouge2', 'rougeL'), 0.5)
  full = dict.fromkeys(half, 1.0)
  rouge = scores.load_rouge()
  assert scores.score(answered, {}, rouge) == {
    'cnn_dm': {'texts': 2, **half},
    'summarization': {'texts': 1, **full},
  }
  assert scores.score(answered, {}, None) == {}
  found = scores.references([answered])
  assert scores.needs_rouge(answered, found)
  assert not scores.needs_rouge(answered[5:], found)
  assert not scores.needs_rouge(answered[3:4], found)


def test_every_turn_that_has_a_reference_is_scored():
  answer = asked(1, 'gsm8k', ['24', '5', '6'], (RESULT, '#### 4'))
  assert scores.score([answer], {}, None) == {
    'gsm8k': {'texts': 2, 'accuracy': 0.5}
  }


def test_without_the_package_there_is_no_rouge(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rouge_score', None)
  monkeypatch.setitem(sys.modules, 'rouge_score.rouge_scorer', None)
  assert scores.load_rouge() is None
