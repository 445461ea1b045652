"""Texts to token ids: one beginning, and no end of text behind them."""

import copy

import chain_model
import pytest
from tokenizers.processors import TemplateProcessing

from swift_jax.errors import InputError
from swift_jax.runtime import prompts

BOS, EOS = 1, 2
KINDS = pytest.mark.parametrize(
  'make', [chain_model.byte_fallback, chain_model.byte_level]
)


def tokenizer_that_sets(make, form):
  """`<s> $A`: the tokenizer puts a beginning before each text."""
  tokenizer = copy.deepcopy(make())
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
    single=form, special_tokens=[('<s>', BOS), ('</s>', EOS)]
  )
  return tokenizer


def encode(text, tokenizer):
  """Token ids and what is said of them."""
  said = []
  return prompts.encode_text(text, tokenizer, said.append), said


@KINDS
@pytest.mark.parametrize('text', ['<s>ab', '<s><s>ab', '<s>', '<s> é</s>'])
def test_a_beginning_stands_there_once(make, text):
  """As often as the caller wrote it, whatever the tokenizer would add."""
  tokenizer = tokenizer_that_sets(make, '<s> $A')
  bare = tokenizer(text, add_special_tokens=False)['input_ids']
  assert bare[0] == BOS and tokenizer(text)['input_ids'] == [BOS, *bare]
  found, said = encode(text, tokenizer)
  assert found == bare
  assert said == [
    "a prompt that begins with '<s>' gets no second one from the tokenizer"
  ]
  # One that sets none takes the text as it is, and nothing is said.
  assert encode(text, make()) == (bare, [])


@KINDS
@pytest.mark.parametrize('text', ['ab', 'a<s>b', ' <s>', '</s>', 'ab</s>'])
def test_other_texts_are_as_the_tokenizer_has_them(make, text):
  tokenizer = tokenizer_that_sets(make, '<s> $A')
  whole = tokenizer(text)['input_ids']
  assert whole[0] == BOS and whole[1] != BOS
  assert encode(text, tokenizer) == (whole, [])


@KINDS
@pytest.mark.parametrize('text', ['ab', 'ab</s>', '</s>', '<s>ab'])
def test_no_end_of_text_is_set_behind_a_prompt(make, text):
  """Only the caller's own stays: the text would go on behind an end."""
  tokenizer = tokenizer_that_sets(make, '$A </s>')
  bare = tokenizer(text, add_special_tokens=False)['input_ids']
  assert tokenizer(text)['input_ids'] == [*bare, EOS]
  found, said = encode(text, tokenizer)
  assert found == bare
  assert said == [
    "the '</s>' that the tokenizer sets behind a prompt is left off: the text"
    ' goes on'
  ]


@KINDS
def test_both_at_once(make):
  tokenizer = tokenizer_that_sets(make, '<s> $A </s>')
  bare = tokenizer('ab', add_special_tokens=False)['input_ids']
  found, said = encode('ab', tokenizer)
  assert (found, len(said)) == ([BOS, *bare], 1)
  found, said = encode('<s>ab', tokenizer)
  assert (found, len(said)) == ([BOS, *bare], 2)


@KINDS
def test_one_token_may_be_beginning_and_end(make):
  """As GPT-2's and the demo's."""
  tokenizer = tokenizer_that_sets(make, '<s> $A')
  tokenizer.eos_token = '<s>'
  for text in ('<s>', '<s>ab', 'ab<s>', 'ab'):
    bare = tokenizer(text, add_special_tokens=False)['input_ids']
    found, _ = encode(text, tokenizer)
    assert found == (bare if bare[0] == BOS else [BOS, *bare])


def test_an_engine_says_it_once_and_has_one_way(caplog):
  tokenizer = tokenizer_that_sets(chain_model.byte_level, '<s> $A')
  engine = chain_model.engine(tokenizer)
  texts = ['<s>ab', '<s>cd', 'ef']
  found = engine.encode(texts)
  assert [ids.count(BOS) for ids in found] == [1, 1, 1]
  assert found == [engine.encode_text(text) for text in texts]
  assert engine.encode([[BOS, BOS, 9]]) == [[BOS, BOS, 9]]  # ids stay as given
  lines = [record.getMessage() for record in caplog.records]
  assert lines == engine.remarks and len(lines) == 1
  with pytest.raises(InputError, match='^the prompt is empty'):
    engine.encode_text('')
  with pytest.raises(InputError, match='has no tokenizer'):
    chain_model.engine(None).encode_text('a')
