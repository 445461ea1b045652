"""The text of a model with either kind of tokenizer is the same however it came."""

import chain_model
from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax import DecodeConfig, InputError, SamplingConfig

METHODS = ('plain', 'swift', 'prompt_lookup')
KINDS = pytest.mark.parametrize('kind', chain_model.TOKENIZERS)
EOS = chain_model.SPECIAL.index('</s>')
BYTES = [chain_model.FIRST_BYTE + byte for byte in 'é漢🙂\n'.encode()]


def engine(kind, *chains, eos=(), **draft):
  defaults = SamplingConfig(eos_token_id=eos)
  tokenizer = chain_model.TOKENIZERS[kind]
  return chain_model.engine(tokenizer, *chains, defaults=defaults, **draft)


def decode(method, **sampling):
  sampling = {'temperature': 0, 'max_new_tokens': 20, **sampling}
  sampling = SamplingConfig(**sampling)
  return DecodeConfig(method, rounds_per_dispatch=2, sampling=sampling)


def write(made, prompt, **sampling):
  """What all three methods write, once they agree on it, and their pieces on that."""
  found = []
  for method in METHODS:
    pieces = []
    (result,) = made.generate(
      [prompt],
      decode(method, **sampling),
      on_text=lambda _, piece, pieces=pieces: pieces.append(piece),
    )
    assert ''.join(pieces) == result.text
    assert result.metrics.new_tokens == len(result.tokens)
    assert sum(r.returned for r in result.rounds) == len(result.tokens)
    found.append((result.text, result.finish_reason, result.tokens))
  assert found[0] == found[1] == found[2]
  return found[0]


@KINDS
@given(data=st.data())
def test_all_methods_write_what_decoding_at_the_end_gives(kind, data):
  token = st.sampled_from(BYTES) | st.integers(0, chain_model.SIZE - 1)
  chain = data.draw(st.lists(token, min_size=2, max_size=24, unique=True))
  # What the chain goes through stands in the prompt too, for a copy to be made of.
  before = chain[data.draw(st.integers(1, len(chain))) :]
  prompt = [*data.draw(st.lists(token, max_size=6)), *before, chain[0]]
  stops = data.draw(
    st.lists(st.text('ab é漢🙂\n\ufffd', min_size=1, max_size=2), max_size=3)
  )
  eos = data.draw(st.sampled_from([(), (chain[-1],)]))
  most = data.draw(st.integers(1, 26))
  tokens = [*chain[1:], *[chain[-1]] * 26][:most]
  if eos and eos[0] in tokens:
    tokens = tokens[: tokens.index(eos[0]) + 1]
  longest = data.draw(st.integers(1, 5))
  made = engine(kind, chain, eos=eos, max_draft_length=longest)
  text, reason, written = write(
    made, prompt, stop_strings=stops, max_new_tokens=most
  )
  assert written == tokens[: len(written)]
  before, whole = (chain_model.joined(kind, part) for part in (prompt, written))
  if reason != 'stop':
    assert written == tokens
    assert reason == ('eos' if eos and tokens[-1] == eos[0] else 'length')
    assert not any(stop in text for stop in stops)
  if chain_model.certain(before) == before.decode(errors='replace'):
    # The prompt ends with a character, so that the text is its own.
    alone = whole.decode(errors='replace')
    places = [alone.find(stop) for stop in stops if stop in alone]
    assert bool(places) == (reason == 'stop')
    assert text == (alone[: min(places)] if places else alone)


def test_a_stop_string_is_found_in_a_run_of_bytes():
  """Nobody can tell by the last token of a block whether the run will complete."""
  tokenizer = chain_model.byte_fallback()
  chain = chain_model.ids(tokenizer, 'a g h i j k l 0A F0 9F 98 80 b c')
  made = engine('byte fallback', chain)
  for most in (8, 9, 30):
    found = write(made, chain[:1], stop_strings='\n', max_new_tokens=most)
    assert found == ('ghijkl', 'stop', chain[1:8])
  for most in (8, 11):
    text, reason, _ = write(made, chain[:1], max_new_tokens=most)
    assert reason == 'length'
    assert text == ('ghijkl\n\ufffd' if most == 8 else 'ghijkl\n😀')


@KINDS
def test_pieces_are_the_text_where_it_ends_within_a_character(kind):
  tokenizer = chain_model.TOKENIZERS[kind]
  chain = chain_model.ids(tokenizer, 'a g h i j k l C3 A9 E6')
  text, reason, _ = write(engine(kind, chain), chain[:1], max_new_tokens=9)
  assert (text, reason) == ('ghijklé\ufffd', 'length')


@KINDS
def test_a_text_begins_with_what_the_model_wrote(kind):
  tokenizer = chain_model.TOKENIZERS[kind]
  chain = chain_model.ids(tokenizer, 'E6 BC A2 b c')
  prompt = chain_model.ids(tokenizer, 'a C3 A9') + chain[:1]
  made = engine(kind, chain)
  assert write(made, prompt, max_new_tokens=3)[0] == '漢b'
  prompt = chain_model.ids(tokenizer, 'a C3 A9 E7') + chain[-2:-1]
  assert write(made, prompt, max_new_tokens=1)[0] == 'c'


@KINDS
def test_a_stop_string_with_a_special_token(kind):
  tokenizer = chain_model.TOKENIZERS[kind]
  chain = chain_model.ids(tokenizer, 'a b <|im_end|> c </s> d')
  made = engine(kind, chain, eos=EOS)
  end = chain_model.SPECIAL.index('<|im_end|>')
  for stops in (('<|im_end|>',), ('x', 'b<|im_end|>'), ('c</s>',)):
    for method in METHODS:
      with pytest.raises(InputError) as error:
        made.generate([chain[:1]], decode(method, stop_strings=stops))
      line = str(error.value)
      assert line.startswith(f'sampling.stop_strings={stops}: ')
      assert 'sampling.skip_special_tokens=False' in line
      assert f'eos_token_id={EOS if "</s>" in stops[0] else end}' in line
  # What ends the text in any case is refused where it does not.
  write(made, chain[:1], stop_strings=('</s>',))
  with pytest.raises(InputError, match='special token'):
    settings = SamplingConfig(stop_strings=('</s>',))
    going_on = DecodeConfig(ignore_eos=True, sampling=settings)
    made.generate([chain[:1]], going_on)
  keep = {'skip_special_tokens': False}
  found = write(made, chain[:1], stop_strings=('<|im_end|>',), **keep)
  assert found == ('b', 'stop', chain[1:3])
  found = write(made, chain[:1], **keep)
  assert found == ('b<|im_end|>c</s>', 'eos', chain[1:5])
  assert write(made, chain[:1]) == ('bc', 'eos', chain[1:5])


def test_a_stop_string_needs_a_tokenizer():
  made = chain_model.engine(None)
  with pytest.raises(InputError, match='^sampling.stop_strings=.*no tokenizer'):
    made.generate([[5]], decode('plain', stop_strings='a'))
