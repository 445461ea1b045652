"""Streams, streamers, chats and seeds, with tokenizers as models have them."""

import copy
import re
import threading

import chain_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  pre_tokenizers,
  processors,
)
from transformers import (
  PreTrainedTokenizerFast,
  TextIteratorStreamer,
  TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask

BOS = 1
INCOMPLETE = '\ufffd'
LETTERS = 'abcdefghijklmnopqrstuvwxyz :\n'
TEMPLATE = """{{ bos_token -}}
{%- for m in messages -%}
{%- if m.role not in ('user', 'assistant') -%}
{{ raise_exception('no role of that name: ' + m.role) }}
{%- endif -%}
{{ m.role + ':' + m.content + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif -%}
"""


def make_tokenizer(chat_template=None) -> PreTrainedTokenizerFast:
  """A byte-level BPE whose merges go across characters, as trained ones may.

  Two thirds of its tokens end or begin within one of the characters é, ê, ë.
  """
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

  def as_symbols(text):
    ((symbols, _),) = byte_level.pre_tokenize_str(text)
    return symbols

  lead, *_ = as_symbols('é')
  ends = [as_symbols(c)[1] for c in 'éêë']
  singles = [as_symbols(c) for c in LETTERS] + [lead, *ends]
  merges = [(as_symbols(c), lead) for c in LETTERS]
  merges += [(end, as_symbols(c)) for c in LETTERS for end in ends]
  names = ['</s>', '<s>', *singles]
  merges = merges[: CFG.vocab_size - len(names)]
  names += [''.join(pair) for pair in merges]
  assert len(names) == len(set(names)) == CFG.vocab_size
  vocab = {name: i for i, name in enumerate(names)}
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
  tokenizer.pre_tokenizer = byte_level
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', BOS)]
  )
  tokenizer.add_special_tokens(
    [AddedToken(name, special=True) for name in ('</s>', '<s>')]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token='<s>',
    eos_token='</s>',
    chat_template=chat_template,
  )


MESSAGES = [
  {'role': 'user', 'content': 'hi é'},
  {'role': 'assistant', 'content': 'ab'},
  {'role': 'user', 'content': 'cd'},
]
PROMPTS = ['ab', 'déf', [1, 5, 9, 40]]
HALF = skip_mask.uniform(CFG.num_hidden_layers, 0.5)


@pytest.fixture(scope='module')
def tokenizer():
  return make_tokenizer(TEMPLATE)


@pytest.fixture(scope='module')
def engine(tokenizer):
  return tiny_model.engine(
    HALF, (), tokenizer, confidence_threshold=0.0, max_draft_length=4
  )


DRAWN = {'temperature': 1.5, 'top_k': 0, 'seed': 5}
CASES = pytest.mark.parametrize(
  'settings',
  [
    pytest.param({'method': 'plain'}, id='plain greedy'),
    pytest.param(
      {'method': 'plain', **DRAWN}, id='plain drawn', marks=pytest.mark.nightly
    ),
    pytest.param(
      {'method': 'swift'}, id='swift greedy', marks=pytest.mark.nightly
    ),
    pytest.param({'method': 'swift', **DRAWN}, id='swift drawn'),
  ],
)


def decode(**settings):
  """Settings that hand text on as often as can be."""
  return tiny_model.decode(**{'rounds_per_dispatch': 1, **settings})


def write(engine, prompt, **settings):
  (result,) = engine.generate(prompt, decode(**settings))
  return result


class Spy(BaseStreamer):
  """Notes what a streamer is given."""

  def __init__(self):
    self.puts, self.ends = [], 0

  def put(self, value):
    assert not self.ends
    self.puts.append(np.asarray(value).ravel().tolist())

  def end(self):
    self.ends += 1


# ---- Engine.stream


@CASES
@pytest.mark.parametrize('prompt', PROMPTS, ids=str)
def test_a_stream_is_the_text(engine, tokenizer, settings, prompt):
  result = write(engine, prompt, **settings)
  pieces = list(engine.stream(prompt, decode(**settings)))
  assert ''.join(pieces) == result.text
  assert len(pieces) > 4 and all(pieces)
  # That is, what all the tokens are at once.
  (ids,) = engine.encode([prompt])
  before, whole = (
    tokenizer.decode(part, skip_special_tokens=True)
    for part in (ids, ids + result.tokens)
  )
  complete = before.removesuffix(INCOMPLETE)  # the text has that character
  assert (
    whole == (before if whole.startswith(before) else complete) + result.text
  )


@CASES
def test_no_piece_ends_within_a_character(engine, tokenizer, settings):
  split = 0
  for prompt in PROMPTS:
    spy, shown = Spy(), []
    (result,) = engine.generate(
      prompt,
      decode(**settings),
      on_text=lambda _, piece, shown=shown: shown.append(piece),
      streamer=spy,
    )
    pieces = list(engine.stream(prompt, decode(**settings)))
    assert pieces == shown
    assert ''.join(pieces) == result.text
    # Tokens came that end within a character, which later ones complete.
    ids, *puts = spy.puts
    whole = tokenizer.decode(ids + result.tokens)
    for put in puts:
      ids += put
      text = tokenizer.decode(ids)
      split += text.endswith(INCOMPLETE) and not whole.startswith(text)
  assert split  # else nothing was tested


@CASES
def test_no_part_of_a_stop_string_is_given_away(engine, settings):
  text = write(engine, 'ab', **settings).text
  inside = [
    text[at : at + size]
    for size in (1, 2, 3, 5)
    for at in range(6, len(text) - size, 7)
  ]
  stops = [stop for stop in inside if INCOMPLETE not in stop]
  assert len(stops) > 4
  for stop in stops:
    found = text.index(stop)
    stopping = decode(**settings, stop_strings=(stop,))
    pieces = list(engine.stream('ab', stopping))
    assert ''.join(pieces) == text[:found]
    # What begins as a stop string and goes on otherwise is given in the end.
    for others in ((stop + '!',), (stop + '!', stop[0] + '?', text + 'a')):
      stopping = decode(**settings, stop_strings=others)
      assert ''.join(engine.stream('ab', stopping)) == text


@CASES
def test_a_stream_may_be_left(engine, settings):
  wanted = [write(engine, prompt, **settings) for prompt in PROMPTS]
  for prompt in PROMPTS:
    pieces = engine.stream(prompt, decode(**settings))
    assert wanted[PROMPTS.index(prompt)].text.startswith(next(pieces))
    del pieces
  left = engine.stream('ab', decode(**settings))
  next(left)
  left.close()
  assert list(left) == []
  for prompt, result in zip(PROMPTS, wanted, strict=True):
    again = write(engine, prompt, **settings)
    assert (again.tokens, again.text) == (result.tokens, result.text)


@CASES
def test_streams_side_by_side_do_not_mix(engine, settings):
  wanted = [write(engine, prompt, **settings).text for prompt in PROMPTS[:2]]
  streams = [
    engine.stream(prompt, decode(**settings)) for prompt in PROMPTS[:2]
  ]
  seen = ['', '']
  for _ in range(100):
    for i, stream in enumerate(streams):
      seen[i] += next(stream, '')
  assert seen == wanted


def test_a_search_outlives_a_stream_that_is_left(tokenizer):
  engine = tiny_model.engine(tokenizer=tokenizer)
  wanted = [write(engine, prompt).tokens for prompt in PROMPTS]
  stream = engine.stream('ab', decode())
  for _ in range(9):
    next(stream)
  before = engine.searcher.iterations
  del stream
  assert [write(engine, prompt).tokens for prompt in PROMPTS] == wanted
  assert engine.searcher.iterations > before


def test_a_stream_refuses_when_it_is_asked(engine):
  stream = engine.stream('', decode())
  with pytest.raises(InputError, match='prompt 0 is empty'):
    next(stream)


def test_a_streams_index_is_that_of_the_draws(engine):
  results = engine.generate(['ab'] * 3, decode(**DRAWN))
  for index, result in enumerate(results):
    pieces = engine.stream('ab', decode(**DRAWN), index=index)
    assert ''.join(pieces) == result.text


# ---- streamers of transformers


@CASES
@pytest.mark.parametrize('prompt', PROMPTS, ids=str)
def test_a_streamer_gets_the_prompt_the_tokens_and_the_end(
  engine, settings, prompt
):
  usual = write(engine, prompt, **settings)
  half, letters = len(usual.text) // 2, LETTERS.strip()
  endings = {
    'length': {},
    'eos': {'eos_token_id': usual.tokens[20]},
    'stop': {
      'stop_strings': next(c for c in usual.text[half:] if c in letters)
    },
    'nothing': {'max_new_tokens': 0},
  }
  for reason, ending in endings.items():
    spy = Spy()
    (result,) = engine.generate(
      prompt, decode(**{**settings, **ending}), streamer=spy
    )
    (ids,) = engine.encode([prompt])
    first, *rest = spy.puts
    assert first == ids
    assert sum(rest, []) == result.tokens
    assert spy.ends == 1
    if reason == 'nothing':
      assert not rest
    elif reason != 'length':
      assert result.finish_reason == reason
      assert len(result.tokens) < len(usual.tokens)
      assert result.tokens == usual.tokens[: len(result.tokens)]
    assert all(rest)  # nothing is put when there is nothing


def test_what_is_put_has_the_shapes_of_transformers(engine):
  """A batch of prompts, then tokens alone: numbers in arrays."""
  seen = []

  class Shapes(Spy):
    def put(self, value):
      super().put(value)
      seen.append((value.ndim, np.issubdtype(value.dtype, np.integer)))

  engine.generate('ab', decode(), streamer=Shapes())
  assert seen[0] == (2, True) and set(seen[1:]) == {(1, True)}


@CASES
@pytest.mark.parametrize('skip_prompt', [True, False])
def test_a_text_streamer_prints_the_text(
  engine, tokenizer, settings, skip_prompt, capsys
):
  streamer = TextStreamer(tokenizer, skip_prompt, skip_special_tokens=True)
  (result,) = engine.generate('ab', decode(**settings), streamer=streamer)
  before = '' if skip_prompt else 'ab'
  assert capsys.readouterr().out == f'{before}{result.text}\n'


@CASES
def test_an_iterator_in_a_thread_joins_to_the_text(engine, tokenizer, settings):
  streamer = TextIteratorStreamer(
    tokenizer, skip_prompt=True, timeout=120, skip_special_tokens=True
  )
  thread = threading.Thread(
    target=engine.generate,
    args=('ab', decode(**settings)),
    kwargs={'streamer': streamer},
  )
  thread.start()
  pieces = list(streamer)
  thread.join()
  assert len(pieces) > 4
  assert ''.join(pieces) == write(engine, 'ab', **settings).text


@pytest.mark.parametrize('prompts', [['ab', 'cd'], ['ab'] * 4, []])
def test_a_streamer_is_for_one_prompt(engine, prompts):
  spy = Spy()
  said = f'streamer: expected one prompt, not {len(prompts)}'
  with pytest.raises(InputError, match=said):
    engine.generate(prompts, decode(), streamer=spy)
  assert spy.puts == [] and not spy.ends


def test_one_prompt_in_a_list_is_one(engine):
  spy = Spy()
  (result,) = engine.generate(['ab'], decode(), streamer=spy)
  assert sum(spy.puts[1:], []) == result.tokens


# ---- chats


def template_ids(tokenizer, messages):
  """By way of the text, which holds the special tokens already."""
  is_begun = messages[-1]['role'] == 'assistant'
  text = tokenizer.apply_chat_template(
    messages,
    tokenize=False,
    add_generation_prompt=not is_begun,
    continue_final_message=is_begun,
  )
  return tokenizer(text, add_special_tokens=False)['input_ids']


def essence(results):
  return [(r.tokens, r.text, r.finish_reason) for r in results]


@CASES
def test_a_chat_is_its_template_continued(engine, tokenizer, settings):
  several = [MESSAGES, MESSAGES[:1], tuple(MESSAGES[:2])]
  ids = [template_ids(tokenizer, list(messages)) for messages in several]
  chats = engine.for_chats(decode(**settings))
  wanted = essence(engine.generate(ids, chats))
  results = engine.generate(several, decode(**settings))
  assert essence(results) == wanted
  assert [result.prompt for result in results] == several
  assert essence(engine.generate(MESSAGES, decode(**settings))) == wanted[:1]
  assert len({tuple(tokens) for tokens, *_ in wanted}) == 3
  streamed = engine.stream(MESSAGES, decode(**settings))
  assert ''.join(streamed) == wanted[0][1]


def test_a_chat_begins_once_and_ends_where_the_answer_begins(engine):
  (plain,) = engine.encode(['hi'])
  assert plain[0] == BOS  # the tokenizer adds it to a prompt
  (ids,) = engine.encode(MESSAGES)
  assert ids == engine.encode_chat(MESSAGES)
  assert ids.count(BOS) == 1 and ids[0] == BOS
  text = engine.tokenizer.decode(ids)
  assert text == '<s>user:hi é\nassistant:ab\nuser:cd\nassistant:'


def test_a_chat_goes_wherever_a_prompt_does(engine):
  spy, shown = Spy(), []
  results = engine.generate(
    MESSAGES,
    decode(**DRAWN),
    on_text=lambda row, piece: shown.append((row, piece)),
    streamer=spy,
    indices=[2],
  )
  assert spy.puts[0] == engine.encode_chat(MESSAGES)
  assert sum(spy.puts[1:], []) == results[0].tokens
  assert ''.join(piece for _, piece in shown) == results[0].text
  third = engine.generate([MESSAGES] * 3, decode(**DRAWN))[2]
  assert essence(results) == essence([third])
  with pytest.raises(InputError, match='expected one prompt, not 2'):
    engine.generate([MESSAGES] * 2, streamer=Spy())


CHAINED = (
  '{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n'
  '{% endfor %}{% if add_generation_prompt %}a:{% endif %}{{ more }}'
)
TALK = [
  {'role': 'user', 'content': 'hi'},
  {'role': 'assistant', 'content': 'wxa'},
]


def chained(make, names, eos='<|im_end|>', **how):
  """An engine that writes a chain and chats in a template."""
  tokenizer = copy.deepcopy(make())
  tokenizer.chat_template, tokenizer.eos_token = CHAINED, eos
  return chain_model.engine(tokenizer, chain_model.ids(tokenizer, names), **how)


def settings_of(method, max_new_tokens=12, **sampling):
  sampling = SamplingConfig(max_new_tokens=max_new_tokens, **sampling)
  return DecodeConfig(method=method, sampling=sampling)


@pytest.mark.parametrize('method', ['plain', 'swift'])
@pytest.mark.parametrize(
  'make', [chain_model.byte_fallback, chain_model.byte_level]
)
def test_only_what_the_model_adds_to_an_answer_is_its_text(make, method):
  engine = chained(make, 'a 20 b c </s> 3A g h </s>', '</s>')
  settings = settings_of(method)
  (result,) = engine.generate(TALK, settings)
  assert (result.text, result.finish_reason) == (' bc', 'eos')
  assert ''.join(engine.stream(TALK, settings)) == ' bc'
  # What is told to the template reaches it by each way.
  close = {'continue_final_message': False}
  (ids,) = engine.encode(TALK, close)
  assert ids == engine.encode_chat(TALK, close) != engine.encode_chat(TALK)
  (closed,) = engine.generate(TALK, settings, chat_template_kwargs=close)
  assert closed.text == 'gh'
  spy, pieces = Spy(), engine.stream(TALK, settings, chat_template_kwargs=close)
  assert ''.join(pieces) == 'gh'
  engine.generate(TALK, settings, streamer=spy, chat_template_kwargs=close)
  assert spy.puts[0] == ids
  told = {'more': 'a'}
  (result,) = engine.generate(TALK[:1], settings, chat_template_kwargs=told)
  assert result.text == ' bc'


@pytest.mark.parametrize('method', ['plain', 'swift'])
def test_a_chat_ends_at_the_tokenizers_end_too(method, caplog):
  """As Llama 3's first release: <|eot_id|> is in neither of its files."""
  engine = chained(
    chain_model.byte_level,
    'a b <|im_end|> c </s> d d',
    defaults=SamplingConfig(eos_token_id=2),
  )
  settings = settings_of(method)
  text = 'hia'
  results = engine.generate([text, TALK, TALK, text, TALK], settings)
  whole = chain_model.ids(engine.tokenizer, 'b <|im_end|> c </s>')
  wanted = [whole, whole[:2], whole[:2], whole, whole[:2]]
  assert [result.tokens for result in results] == wanted
  assert [result.text for result in results] == ['bc', 'b', 'b', 'bc', 'b']
  assert {result.finish_reason for result in results} == {'eos'}
  # Pieces and results keep the places of their prompts.
  shown = {}
  engine.generate(
    [text, TALK, TALK, text, TALK],
    settings,
    on_text=lambda row, piece: shown.setdefault(row, []).append(piece),
  )
  assert [''.join(shown[row]) for row in range(5)] == [r.text for r in results]
  assert ''.join(engine.stream(TALK, settings)) == 'b'
  lines = [
    record.getMessage()
    for record in caplog.records
    if record.getMessage().startswith('a chat')
  ]
  assert (
    lines
    == engine.remarks
    == [
      "a chat ends at the tokenizer's '<|im_end|>' (3), as well as at 2 of the"
      " model's files; sampling.eos_token_id says otherwise"
    ]
  )
  # Token ids of a chat are no messages: who has them asks for its ends.
  (ids,) = engine.encode(TALK)
  (plain,) = engine.generate(ids, settings)
  (chat,) = engine.generate(ids, engine.for_chats(settings))
  assert (plain.tokens, chat.tokens) == (whole, whole[:2])


def test_who_names_an_end_has_that_one():
  engine = chained(
    chain_model.byte_level,
    'a b <|im_end|> c </s> d d',
    defaults=SamplingConfig(eos_token_id=2),
  )
  whole = chain_model.ids(engine.tokenizer, 'b <|im_end|> c </s> d')
  for given, length in (((2,), 4), ((2, 3), 2), ((), 5), ((9,), 5)):
    settings = settings_of('plain', 5, eos_token_id=given)
    assert engine.for_chats(settings) == settings
    (result,) = engine.generate(TALK, settings)
    assert result.tokens == [*whole, *whole[-1:]][:length]
  assert engine.remarks == []


@pytest.mark.parametrize('eos', ['<|im_end|>', None, '<new>', '</s>'])
@pytest.mark.parametrize('files', [(2,), (2, 7), (), None])
def test_the_ends_of_a_chat_are_all_that_are_known(eos, files):
  tokenizer = copy.deepcopy(chain_model.byte_level())
  tokenizer.eos_token = eos
  engine = chain_model.engine(
    tokenizer, defaults=SamplingConfig(eos_token_id=files)
  )
  decode = DecodeConfig(method='plain')
  found = engine.resolve(engine.for_chats(decode).sampling).config.eos_token_id
  own = {'<|im_end|>': 3, '</s>': 2}.get(eos)  # the model cannot write <new>
  assert set(found) == {*(files or ()), *([] if own is None else [own])}
  is_new = own is not None and own not in (files or ())
  assert len(engine.remarks) == is_new
  if is_new and not files:
    said = "since the model's files name no end of text"
    assert said in engine.remarks[0]


def test_a_chat_that_is_told_to_go_on_does(caplog):
  engine = chained(chain_model.byte_level, 'a b <|im_end|> c </s> d d')
  settings = settings_of('plain', 5)
  settings = DecodeConfig('plain', ignore_eos=True, sampling=settings.sampling)
  (result,) = engine.generate(TALK, settings)
  assert len(result.tokens) == 5 and not engine.remarks


def test_arguments_without_a_conversation_are_said_to_be_idle():
  engine = chained(chain_model.byte_level, 'a b')
  given = {'enable_thinking': False}
  assert engine.encode('hi', given) == engine.encode('hi')
  assert engine.remarks == [
    'chat_template_kwargs: without effect, since no prompt is a conversation'
  ]
  with pytest.raises(InputError, match='^chat_template_kwargs: tokenize=False'):
    engine.encode('hi', {'tokenize': False})


@pytest.mark.parametrize('tokenizer', [None, make_tokenizer()])
def test_without_a_template_there_is_no_chat(tokenizer):
  engine = tiny_model.engine(HALF, tokenizer=tokenizer)
  for messages in (MESSAGES, [MESSAGES]):
    with pytest.raises(InputError, match='no chat template'):
      engine.generate(messages)
  with pytest.raises(InputError, match='no chat template'):
    engine.encode_chat(MESSAGES)


@pytest.mark.parametrize(
  'messages, said',
  [
    ([{'role': 'robot', 'content': 'x'}], 'no role of that name: robot'),
    ([*MESSAGES, {'role': 'tool', 'content': 'x'}], 'of that name: tool'),
    ([{'role': 'user'}], 'content'),
    ([{'role': 'user', 'content': 3}], 'TypeError'),
  ],
)
def test_a_template_that_refuses_is_quoted(engine, messages, said):
  for given in (messages, [MESSAGES, messages]):
    index = len(given) - 1 if given[0] is MESSAGES else 0
    refusal = f'prompt {index}: the chat template refuses'
    with pytest.raises(InputError, match=refusal) as error:
      engine.generate(given)
    assert said in str(error.value) and '\n' not in str(error.value)


# ---- what a prompt may be


def test_prompts_of_all_kinds_go_together(engine):
  mixed = ['ab', [1, 5, 9], MESSAGES, (1, 5), 'd', np.arange(2, 9)]
  wanted = [engine.generate(prompt, decode()) for prompt in mixed]
  assert [len(results) for results in wanted] == [1] * len(mixed)
  results = engine.generate(mixed, decode())
  assert essence(results) == essence(result for (result,) in wanted)
  assert [result.prompt for result in results] == [
    *mixed[:-1],
    list(range(2, 9)),
  ]
  assert engine.encode(mixed) == [engine.encode(one)[0] for one in mixed]
  assert engine.generate([]) == []


@pytest.mark.parametrize(
  'ids',
  [
    np.array([3, 4, 5], np.uint8),
    jnp.array([3, 4, 5]),
    list(np.array([3, 4, 5])),
    list(jnp.array([3, 4, 5])),
    range(3, 6),
  ],
  ids=lambda ids: type(ids).__name__,
)
def test_token_ids_are_whatever_holds_integers(engine, ids):
  assert engine.encode(ids) == engine.encode([ids]) == [[3, 4, 5]]
  assert engine.encode(np.array([[3, 4], [5, 6]])) == [[3, 4], [5, 6]]


@pytest.mark.parametrize(
  'prompt, said',
  [
    (None, 'None: expected a string, token ids or messages'),
    (True, 'True: expected'),
    (7.5, '7.5: expected'),
    (b'ab', "b'ab': expected"),
    (MESSAGES[0], "{'role': 'user', 'content': 'hi é'}: expected"),
    ({3, 4}, '{3, 4}: expected'),
    (np.zeros((2, 2)), '[0.0, 0.0] is no token id'),
    ([1, 0.5], '0.5 is no token id'),
    ([1, True], 'True is no token id'),
    ([1, '2'], "'2' is no token id"),
    ([1, None], 'None is no token id'),
    ([MESSAGES[0], 'hi'], "message 'hi': expected role and content"),
    ([{'content': 'hi'}], "message {'content': 'hi'}: expected role"),
    ([1, -1], 'token -1 is outside the vocabulary'),
    ([1, CFG.vocab_size], 'token 101 is outside the vocabulary'),
    ([1] * 91, 'has 91 tokens, but the context holds'),
    ('', "is empty: ''"),
    ([], 'is empty: []'),
    ((), 'is empty: ()'),
  ],
  ids=repr,
)
def test_what_is_no_prompt_is_named_with_its_index(engine, prompt, said):
  for taker in (engine.encode, engine.generate):
    with pytest.raises(InputError) as error:
      taker(['ab', [1, 2], prompt])
    line = str(error.value)
    assert line.startswith('prompt 2') and said in line and '\n' not in line


@pytest.mark.parametrize('prompt', [None, True, 5, 0.5, b'ab', MESSAGES[0]])
def test_what_is_no_prompt_is_refused_alone_too(engine, prompt):
  refusal = re.escape(f'prompt 0: {prompt!r}: expected a string')
  with pytest.raises(InputError, match=refusal):
    engine.generate(prompt)
  with pytest.raises(InputError, match=refusal):
    next(engine.stream(prompt))


@pytest.mark.parametrize('prompts', [[], ['ab', 'cd'], [MESSAGES, 'cd']])
def test_a_stream_is_of_one_prompt(engine, prompts):
  said = rf'prompt=\[.*: expected one prompt, not {len(prompts)}'
  with pytest.raises(InputError, match=said):
    next(engine.stream(prompts))


# ---- what fixes a draw


def tokens(engine, prompts, indices=None, **settings):
  results = engine.generate(prompts, decode(**settings), indices=indices)
  return [result.tokens for result in results]


@pytest.mark.parametrize('method', ['plain', 'swift'])
def test_equal_prompts_are_drawn_apart(engine, method):
  settings = {'method': method, **DRAWN}
  first, second = tokens(engine, ['ab', 'ab'], **settings)
  assert first != second
  for _ in range(2):  # nothing is left of an earlier call
    assert tokens(engine, ['ab', 'ab'], **settings) == [first, second]
  other = tokens(engine, ['ab', 'ab'], **{**settings, 'seed': 6})
  assert first not in other and second not in other
  # Greedy text knows no index.
  one, two = tokens(engine, ['ab', 'ab'], method=method)
  assert one == two


@pytest.mark.parametrize('method', ['plain', 'swift'])
def test_a_prompt_is_drawn_by_its_index_whatever_it_rides_with(engine, method):
  settings = {'method': method, **DRAWN}
  wanted = tokens(engine, ['ab'] * 5, **settings)  # batches of 3 and 2
  assert len(set(map(tuple, wanted))) == 5
  for index in (0, 1, 4):
    assert tokens(engine, ['ab'], [index], **settings) == [wanted[index]]
  swapped = tokens(engine, ['ab', 'ab'], [1, 0], **settings)
  assert swapped == [wanted[1], wanted[0]]
  beside = tokens(engine, ['cd', 'ab'], [7, 1], **settings)
  assert beside[1] == wanted[1]
  alone = tokens(engine, ['ab'] * 2, batch_size=1, **settings)
  assert alone == wanted[:2]


def test_indices_are_one_a_prompt(engine):
  for indices in ([], [0], [0, 1, 2]):
    with pytest.raises(InputError, match=r'indices=.*one a prompt, 2'):
      engine.generate(['ab', 'cd'], decode(), indices=indices)


@pytest.mark.parametrize('index', [-1, 2**32, 0.5])
def test_an_index_that_is_none_is_refused(engine, index):
  with pytest.raises(InputError, match='indices='):
    engine.generate(['ab'], decode(**DRAWN), indices=[index])


def test_draws_go_without_transfers_that_nobody_asked_for(engine):
  with jax.transfer_guard('disallow'):
    for method in ('plain', 'swift'):
      settings = decode(method=method, **DRAWN)
      assert len(list(engine.stream('ab', settings))) > 4
