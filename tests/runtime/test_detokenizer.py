"""A text is its tokens' bytes, in whatever blocks they come."""

import time

import chain_model
from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.runtime.detokenizer import Detokenizer
from swift_jax.runtime.token_bytes import TokenBytes, special_tokens

BYTES = {
  kind: TokenBytes(tokenizer, chain_model.SIZE)
  for kind, tokenizer in chain_model.TOKENIZERS.items()
}
KINDS = pytest.mark.parametrize('kind', chain_model.TOKENIZERS)
# Half of what is drawn are bytes of é, 🙂 and a line break.
SOME = [chain_model.FIRST_BYTE + byte for byte in 'é🙂\n'.encode()]
TOKENS = st.lists(
  st.sampled_from(SOME) | st.integers(0, chain_model.SIZE - 1), max_size=24
)
# Few enough that stop strings come, and begin and do not end.
FEW = st.lists(
  st.sampled_from([chain_model.FIRST_BYTE + byte for byte in 'abé\n'.encode()]),
  max_size=12,
)
STOPS = st.lists(
  st.text('ab', min_size=1, max_size=3)
  | st.text('ab é🙂\n\ufffd', min_size=1, max_size=3),
  max_size=3,
)


def in_blocks(data, tokens):
  """The tokens in blocks of drawn sizes."""
  while tokens:
    size = data.draw(st.integers(1, 5))
    yield tokens[:size]
    tokens = tokens[size:]


def write(row: Detokenizer, blocks) -> str:
  """All pieces, joined."""
  return ''.join([*map(row.push, blocks), row.finish()])


def prompt(kind: str) -> list[int]:
  return chain_model.ids(chain_model.TOKENIZERS[kind], 'a')


@KINDS
@given(tokens=TOKENS, data=st.data())
def test_pieces_add_up_to_the_bytes_of_all_tokens(kind, tokens, data):
  row = Detokenizer(BYTES[kind], (), prompt(kind))
  pieces = [row.push(block) for block in in_blocks(data, tokens)]
  shown = ''.join(pieces)
  assert (
    shown == row.text == chain_model.certain(chain_model.joined(kind, tokens))
  )
  assert shown + row.finish() == row.text
  assert row.text == chain_model.joined(kind, tokens).decode(errors='replace')


@given(tokens=TOKENS)
def test_a_byte_level_text_is_what_the_tokenizer_makes_of_all_tokens(tokens):
  kind = 'byte level'
  row = Detokenizer(BYTES[kind], (), prompt(kind))
  tokenizer = chain_model.TOKENIZERS[kind]
  wanted = tokenizer.decode(tokens, skip_special_tokens=True)
  assert write(row, [tokens]) == wanted


@given(text=st.text('ab é漢🙂\n', max_size=12), data=st.data())
def test_a_byte_fallback_text_is_too_where_its_bytes_are_characters(text, data):
  kind = 'byte fallback'
  tokenizer = chain_model.TOKENIZERS[kind]
  tokens = tokenizer(text, add_special_tokens=False)['input_ids']
  row = Detokenizer(BYTES[kind], (), prompt(kind))
  written = write(row, in_blocks(data, tokens))
  assert 'a' + written == tokenizer.decode([*prompt(kind), *tokens])


@KINDS
@given(tokens=FEW | TOKENS, stops=STOPS, data=st.data())
def test_a_text_ends_at_the_token_that_completes_a_stop_string(
  kind, tokens, stops, data
):
  row = Detokenizer(BYTES[kind], stops, prompt(kind))
  pieces = [row.push(block) for block in in_blocks(data, tokens)]
  shown = ''.join(pieces) + row.finish()
  assert shown == row.text
  # As one who looks after every token; at the end nothing can complete any more.
  texts = [
    chain_model.certain(chain_model.joined(kind, tokens[:n]))
    for n in range(len(tokens) + 1)
  ]
  texts.append(chain_model.joined(kind, tokens).decode(errors='replace'))
  for count, text in enumerate(texts):
    places = [text.find(stop) for stop in stops if stop in text]
    if places:
      assert row.stopped
      assert row.tokens == tokens[:count]
      assert shown == text[: min(places)]
      return
  assert (row.stopped, row.tokens, shown) == (False, tokens, texts[-1])


@KINDS
def test_of_two_stop_strings_the_one_that_begins_first_ends_the_text(kind):
  tokens = chain_model.ids(chain_model.TOKENIZERS[kind], 'c a b c')
  for stops in (['ab', 'b'], ['b', 'ab'], ['x', 'cab', 'b', 'ab']):
    row = Detokenizer(BYTES[kind], stops, prompt(kind))
    assert write(row, [tokens]) == ('' if 'cab' in stops else 'c')
    assert row.tokens == tokens[:3]


@KINDS
@given(before=TOKENS, tokens=TOKENS, data=st.data())
def test_nothing_of_the_prompt_is_text(kind, before, tokens, data):
  """But for a character that the prompt begins and the text goes on with."""
  before = prompt(kind) + before
  row = Detokenizer(BYTES[kind], (), before)
  written = write(row, in_blocks(data, tokens))
  first, added = (
    chain_model.joined(kind, before),
    chain_model.joined(kind, tokens),
  )
  whole = (first + added).decode(errors='replace')
  wanted = whole[len(chain_model.certain(first)) :]
  is_apart = len(chain_model.certain(first)) < len(
    chain_model.certain(first + added[:1])
  )
  if (
    is_apart
    and chain_model.certain(first + added[:1])[len(chain_model.certain(first))]
    == '\ufffd'
  ):
    # What the prompt began stays unfinished, and the prompt's.
    wanted = added.decode(errors='replace')
  assert written == (wanted if added else '')


@KINDS
def test_a_character_may_begin_in_the_prompt(kind):
  """Its last byte makes it text; what stands before it in a run of bytes stays."""
  tokenizer = chain_model.TOKENIZERS[kind]
  before = chain_model.ids(tokenizer, 'a C3 A9 E6 BC')
  cases = {
    'A2 62': '漢b',
    '62': 'b',
    'A2': '漢',
    '': '',
    '80 80 62': '漀\ufffdb',
  }
  for names, text in cases.items():
    row = Detokenizer(BYTES[kind], (), before)
    assert write(row, [chain_model.ids(tokenizer, names)]) == text


@KINDS
def test_a_complete_character_stays_beside_half_a_one(kind):
  tokens = chain_model.ids(chain_model.TOKENIZERS[kind], 'g h i j k l C3 A9 E6')
  for blocks in ([tokens], [[token] for token in tokens]):
    row = Detokenizer(BYTES[kind], (), prompt(kind))
    assert write(row, blocks) == 'ghijklé\ufffd' == row.text


def test_the_first_space_stays_behind_a_prompt_with_text():
  tokenizer = chain_model.TOKENIZERS['byte fallback']
  tokens = chain_model.ids(tokenizer, '▁a ▁b')
  for before, text in {'<s> a': ' a b', '<s>': 'a b', '<s> ▁': ' a b'}.items():
    before = chain_model.ids(tokenizer, before)
    row = Detokenizer(BYTES['byte fallback'], (), before)
    whole = tokenizer.decode(before + tokens, skip_special_tokens=True)
    assert write(row, [tokens]) == text
    assert whole.endswith(text)


@KINDS
def test_special_tokens_are_text_when_asked_for(kind):
  tokenizer = chain_model.TOKENIZERS[kind]
  tokens = chain_model.ids(tokenizer, 'b <|im_end|> C3 </s> A9')
  kept = TokenBytes(tokenizer, chain_model.SIZE, skip_special_tokens=False)
  assert write(Detokenizer(BYTES[kind], (), prompt(kind)), [tokens]) == 'bé'
  row = Detokenizer(kept, ['|im_end|>'], prompt(kind))
  assert write(row, [tokens]) == 'b<'
  assert row.tokens == tokens[:2]
  row = Detokenizer(kept, (), prompt(kind))
  assert write(row, [tokens]) == 'b<|im_end|>\ufffd</s>\ufffd'
  assert special_tokens(tokenizer) == dict(enumerate(chain_model.SPECIAL))


class Words:
  """A tokenizer that has no names of tokens, and parts words by spaces."""

  def decode(self, tokens, **_):
    return ' '.join(f'w{token}' for token in tokens)


def test_a_tokenizer_that_only_decodes_will_do():
  row = Detokenizer(TokenBytes(Words(), 9), [' w3'], [7, 8])
  assert row.push([5]) == ' w5'
  assert row.push([3]) == ''
  assert (row.text, row.stopped) == (' w5', True)
  assert Detokenizer(TokenBytes(Words(), 9)).push([5]) == 'w5'
  assert Detokenizer(TokenBytes(None, 9), ['w'], [7]).push([5]) == ''


def test_the_last_token_takes_as_long_as_the_first():
  """Ten thousand tokens, without and with a stop string that never comes."""
  kind = 'byte fallback'
  tokens = (
    chain_model.ids(chain_model.TOKENIZERS[kind], 'a b 0A C3 A9 ▁a F0 9F 98 80')
    * 200
  )

  def seconds(row: Detokenizer) -> float:
    started = time.process_time()
    for token in tokens:
      row.push([token])
    return time.process_time() - started

  for stops in ((), ('\n\n', 'abc')):
    row = Detokenizer(BYTES[kind], stops, prompt(kind))
    parts = [seconds(row) for _ in range(9)]
    assert len(row.tokens) == 9 * len(tokens)
    assert min(parts[-3:]) < 3 * min(parts[:3]), stops
