"""Pieces of text never split a character or a stop string."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.detokenizer import Detokenizer
from swift_jax.session import _end_of


def utf8(tokens) -> str:
  """A tokenizer of single bytes."""
  return bytes(tokens).decode('utf-8', errors='replace')


def blocks(data, tokens):
  """The tokens in blocks of drawn sizes."""
  while tokens:
    size = data.draw(st.integers(1, 5))
    yield tokens[:size]
    tokens = tokens[size:]


@given(text=st.text(alphabet='aé漢🙂 ', max_size=20), data=st.data())
def test_pieces_add_up_to_the_text(text, data):
  row = Detokenizer(utf8)
  pieces = [row.push(part) for part in blocks(data, list(text.encode()))]
  assert all('\ufffd' not in piece for piece in pieces)
  assert ''.join(pieces) + row.finish() == text == row.text


@given(
  text=st.text(alphabet='abc', max_size=30),
  stops=st.lists(st.text('abc', min_size=1, max_size=4), max_size=3),
  data=st.data(),
)
def test_a_stop_string_is_never_shown(text, stops, data):
  row = Detokenizer(utf8, stops)
  pieces = [row.push(part) for part in blocks(data, list(text.encode()))]
  shown = ''.join(pieces) + row.finish()
  assert shown == row.text
  # As a decoder would that looks after every token, here a letter each.
  ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stops))]
  ends = ends if stops else []
  if not ends:
    assert (row.stopped, shown, len(row.tokens)) == (False, text, len(text))
    return
  until = text[: ends[0]]
  assert row.stopped
  assert len(row.tokens) == ends[0]
  assert shown == until[: min(until.find(s) for s in stops if s in until)]


@given(text=st.text(alphabet='aé漢🙂 ', max_size=20), data=st.data())
def test_the_prompts_end_is_no_part_of_the_text(text, data):
  """Wherever the prompt ends, within a character too."""
  tokens = list(text.encode())
  at = data.draw(st.integers(0, len(tokens)))
  row = Detokenizer(utf8, context=tokens[:at])
  pieces = [row.push(part) for part in blocks(data, tokens[at:])]
  assert ''.join(pieces) + row.finish() == row.text
  whole = utf8(tokens[:at]).rstrip('\ufffd')
  assert whole + row.text == text or at == len(tokens)


def byte_fallback(tokens) -> str:
  """All or nothing, as the tokenizers library decodes a run of bytes."""
  try:
    return bytes(tokens).decode()
  except UnicodeDecodeError:
    return '\ufffd' * len(tokens)


@pytest.mark.parametrize('length', range(1, 12))
def test_a_context_begins_where_a_character_does(length):
  prompt, text = '漢' * length, '字🙂'
  context = _end_of(list(prompt.encode()), byte_fallback)
  row = Detokenizer(byte_fallback, context=context)
  pieces = [row.push([byte]) for byte in text.encode()]
  assert ''.join(pieces) == text == row.text


def sentencepiece(tokens) -> str:
  """As Llama's: a word begins with a space, which the first word loses."""
  return ' '.join(f'w{token}' for token in tokens)


def test_the_first_space_stays():
  row = Detokenizer(sentencepiece, [' w3'], context=[7, 8])
  assert row.push([5]) == ' w5'
  assert row.push([3]) == ''
  assert (row.text, row.stopped) == (' w5', True)
  assert Detokenizer(sentencepiece).push([5]) == 'w5'


def test_a_character_that_never_completes_comes_at_the_end():
  row = Detokenizer(utf8)
  assert row.push([ord('a'), 0xE6]) == 'a'
  assert row.finish() == '\ufffd'
