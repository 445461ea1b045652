"""Questions asked of a real small model: prompts, batches, draws and sums."""

import contextlib
import copy
import dataclasses
import datetime
import itertools
import json
import types

from compilations import Compilations
import evaluation_runs as er
from hypothesis import given
from hypothesis import strategies as st
import jax
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.evaluation import answers, runner
from swift_jax.evaluation.runner import Runner
from swift_jax.evaluation.tasks import Question
from swift_jax.evaluation.workdir import Workdir
from swift_jax.pacing.governor import Governor
from swift_jax.runtime import chat_template
from swift_jax.runtime.engine import Engine

MODEL = 'small'
CONTEXT = er.CFG.max_position_embeddings
# Few programs: they are what takes the time.
SEARCH = SearchConfig(
  bayes_interval=0,
  context_window=12,
  importance=False,
  scoring='map',
  skip_ratio=0.5,
  time_budget=1.0,
)
DRAFT = DraftConfig(max_draft_length=7, verify_widths=(8,))
TEMPLATE = (
  "{% for m in messages %}{% if m.content == 'no' %}"
  "{{ raise_exception('not that') }}{% endif %}"
  '<{{ m.role }}>{{ m.content }}\n{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)
QUESTIONS = [
  Question(0, 'a', 'qa', ('import os\n\ndef find(',), ('one',)),
  Question(2, 7, 'chat', ('class Queue:\n', 'def put(self', 'return')),
  Question(3, 'c', 'qa', ('for i in range(10):',)),
  Question(5, 'd', 'chat', ('x = 1', 'while x < 10:\n  x += 1')),
  Question(9, 'e', 'qa', ('"""Text of a module."""\n\nfrom typing import',)),
]
IDS = [question.question_id for question in QUESTIONS]
FACTS = {
  'num_processes': 1,
  'model_id': MODEL,
  'indices': [question.index for question in QUESTIONS],
  'commits': ['abc'],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of the model."""
  return er.make_model(tmp_path_factory.mktemp('runner') / MODEL)


@pytest.fixture(scope='module')
def made(folder):
  """Compiled once for all tests, since the cache has its full size at once."""
  engine = Engine.from_pretrained(str(folder), draft=DRAFT, search=SEARCH)
  needed = CONTEXT + engine.model.shapes.max_width + 1
  for batch in range(1, 8):
    engine.model.reserve(needed, batch)
    engine.model.keep_warm(batch)
  return engine


@pytest.fixture
def engine(made, monkeypatch):
  """That engine; notes what it is asked, and what it answers, as `calls`."""
  calls = []

  def generate(prompts, decode, indices):
    results = type(made).generate(made, prompts, decode, indices=indices)
    calls.append(types.SimpleNamespace(**locals()))
    return results

  monkeypatch.setattr(made, 'generate', generate)
  monkeypatch.setattr(made, 'calls', calls, raising=False)
  monkeypatch.setattr(made, 'tokenizer', copy.deepcopy(made.tokenizer))
  return made


def decoding(method='plain', batch_size=3, max_new_tokens=8, **sampling):
  """Settings of a run."""
  sampling = SamplingConfig(max_new_tokens=max_new_tokens, **sampling)
  return DecodeConfig(
    method, batch_size=batch_size, prefill_chunk=32, sampling=sampling
  )


def is_anyones(question):
  return True


class Asked:
  """A run of some questions.

  Attributes:
    answers: what it wrote, by index.
    batches: answers as they were shown.
  """

  def __init__(
    self, folder, engine, decode, questions=QUESTIONS, done=(), **how
  ):
    file = folder / 'answers.jsonl'
    self.batches = []

    def show(batch):
      self.batches.append(batch)
      written = {answer.index for answer in parsed(file)}
      mine = {q.index for q in questions if how.get('is_mine', is_anyones)(q)}
      assert {answer.index for answer in batch} & mine <= written

    with contextlib.closing(Workdir(str(folder), 0, 1)) as workdir:
      workdir.open(FACTS, IDS)
      self.runner = Runner(engine, decode, questions, workdir, MODEL, **how)
      self.runner.run(done, show)
    self.answers = {answer.index: answer for answer in parsed(file)}
    assert len(self.answers) == len(parsed(file))

  @property
  def tokens(self):
    """Those of every turn, by index."""
    return {
      index: [turn.detail.tokens for turn in answer.turns]
      for index, answer in self.answers.items()
    }


def parsed(file):
  lines = file.read_bytes().splitlines(keepends=True)
  return [answers.parse(line, 'here') for line in lines]


def refusal(folder, engine, decode, questions=QUESTIONS, **how):
  """What asking says; nothing is generated."""
  with pytest.raises(InputError) as caught:
    Asked(folder, engine, decode, questions, **how)
  assert not engine.calls
  return str(caught.value)


def question(*turns):
  return Question(0, 'a', 'qa', turns)


@given(
  lengths=st.dictionaries(st.integers(0, 50), st.integers(1, 9), max_size=20),
  batch_size=st.integers(1, 7),
  order=st.randoms(use_true_random=False),
)
def test_every_question_rides_once_with_others_of_its_length(
  lengths, batch_size, order
):
  questions = [Question(i, i, '', ('?',)) for i in lengths]
  order.shuffle(questions)
  given_order = list(questions)
  found = runner.batches(questions, lengths, batch_size)
  assert questions == given_order
  assert all(len(batch) == batch_size for batch in found[:-1])
  assert all(0 < len(batch) <= batch_size for batch in found)
  flat = [question for batch in found for question in batch]
  if batch_size > 1:
    given_order.sort(key=lambda q: q.index)
    given_order.sort(key=lambda q: lengths[q.index], reverse=True)
  assert flat == given_order


def test_batches_are_made_by_the_tokens_of_the_first_turn(tmp_path, engine):
  asked = Asked(tmp_path, engine, decoding(batch_size=2))
  sizes = {q: len(engine.tokenizer(q.turns[0])['input_ids']) for q in QUESTIONS}
  flat = [question for batch in asked.runner.batches for question in batch]
  assert flat == sorted(QUESTIONS, key=lambda q: (-sizes[q], q.index))
  assert [len(batch) for batch in asked.runner.batches] == [2, 2, 1]
  shown = [[answer.index for answer in batch] for batch in asked.batches]
  assert shown == [[q.index for q in b] for b in asked.runner.batches]


def test_log_probabilities_go_to_the_answers_where_they_are_asked_for(
  tmp_path, engine
):
  decode = decoding(batch_size=3, logprobs=2)
  asked = Asked(tmp_path / 'asked', engine, decode)
  results = {
    tuple(result.tokens): result.logprobs
    for call in engine.calls
    for result in call.results
  }
  for answer in asked.answers.values():
    for turn in answer.turns:
      assert turn.detail.logprobs == results[turn.detail.tokens]
      assert [len(place) for place in turn.detail.logprobs.top] == [2] * 8
  silent = Asked(tmp_path / 'silent', engine, decoding(batch_size=3))
  assert silent.tokens == asked.tokens
  assert b'logprobs' not in (tmp_path / 'silent/answers.jsonl').read_bytes()


def test_turns_without_a_template_are_a_text_that_goes_on(tmp_path, engine):
  asked = Asked(tmp_path, engine, decoding(batch_size=1), QUESTIONS[1:2])
  one, two, three = QUESTIONS[1].turns
  first, second, _ = (turn.text for turn in asked.answers[2].turns)
  assert first and second
  encode = engine.tokenizer
  wanted = [
    one,
    f'{one}{first}\n\n{two}',
    f'{one}{first}\n\n{two}{second}\n\n{three}',
  ]
  assert [call.prompts for call in engine.calls] == [
    [encode(text)['input_ids']] for text in wanted
  ]
  prompts = [turn.detail.prompt_tokens for turn in asked.answers[2].turns]
  assert prompts == [len(encode(text)['input_ids']) for text in wanted]


@pytest.mark.parametrize('chat', [None, True])
def test_turns_in_a_template_alternate(tmp_path, engine, chat):
  engine.tokenizer.chat_template = TEMPLATE
  asked = Asked(
    tmp_path, engine, decoding(batch_size=1), QUESTIONS[1:2], chat=chat
  )
  one, two, three = QUESTIONS[1].turns
  first, second, _ = (turn.text for turn in asked.answers[2].turns)
  last = f'<user>{one}\n<assistant>{first}\n<user>{two}\n<assistant>{second}\n'
  encode = engine.tokenizer
  assert [call.prompts for call in engine.calls] == [
    [encode(text)['input_ids']]
    for text in (
      f'<user>{one}\n<assistant>',
      f'<user>{one}\n<assistant>{first}\n<user>{two}\n<assistant>',
      f'{last}<user>{three}\n<assistant>',
    )
  ]


def facts_of(engine, questions=QUESTIONS, asked=None, **how):
  """What `run.json` would say of the prompts, and the runner; nothing is asked."""
  asked = questions if asked is None else asked
  made = Runner(engine, decoding(), asked, None, MODEL, **how)
  return made.facts(questions), made


def test_what_is_asked_is_told_apart_by_its_token_ids(engine):
  facts, _ = facts_of(engine)
  assert facts['chat_template'] is None and len(facts['prompts']) == 16
  seen = {facts['prompts']}
  # Each process has the facts of all questions.
  for process in (0, 1):
    assert facts_of(engine, asked=QUESTIONS[process::2])[0] == facts
  assert facts_of(engine, QUESTIONS[::-1])[0] != facts
  engine.tokenizer.chat_template = TEMPLATE
  assert facts_of(engine, chat=False)[0] == facts
  chat, _ = facts_of(engine)
  assert chat['chat_template'] == chat_template.fingerprint(TEMPLATE)
  seen.add(chat['prompts'])
  # A template that says the same is another template, of the same prompts.
  engine.tokenizer.chat_template = TEMPLATE + '{# changed #}'
  other, _ = facts_of(engine)
  assert other['prompts'] == chat['prompts']
  assert other['chat_template'] != chat['chat_template']
  engine.tokenizer.chat_template = TEMPLATE.replace('\n', ' ')
  seen.add(facts_of(engine)[0]['prompts'])
  # And so is a tokenizer that splits otherwise.
  engine.tokenizer.chat_template = None
  backend = json.loads(engine.tokenizer.backend_tokenizer.to_str())
  backend['model']['merges'] = backend['model']['merges'][:50]
  engine.tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(backend))
  )
  seen.add(facts_of(engine)[0]['prompts'])
  assert len(seen) == 4


DATED = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE


@pytest.mark.parametrize('day', [1, 2])
def test_a_run_asks_on_every_day_what_it_asked_when_it_began(
  tmp_path, engine, monkeypatch, day
):
  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(2027, 1, day, tzinfo=tz)

  monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
  engine.tokenizer.chat_template = DATED
  began = datetime.datetime(2026, 12, 31, 23, 59, tzinfo=datetime.UTC)
  Asked(tmp_path, engine, decoding(), QUESTIONS[1:2], now=began)
  for call in engine.calls:  # later turns too
    text = engine.tokenizer.decode(call.prompts[0])
    assert text.startswith('31 Dec 2026<user>class Queue:')
  assert len(engine.calls) == 3
  facts, _ = facts_of(engine, now=began)
  assert facts['chat_template'] == chat_template.fingerprint(DATED)
  with monkeypatch.context() as patch:
    patch.setattr(Clock, 'now', lambda *_: began)
    assert facts_of(engine)[0] == facts
  assert facts_of(engine)[0]['prompts'] != facts['prompts']
  later = began + datetime.timedelta(minutes=1)
  assert facts_of(engine, now=later)[0]['prompts'] != facts['prompts']


def test_a_chat_ends_as_it_does_elsewhere(tmp_path, engine):
  """The tokenizer's end is one that the text comes upon."""
  engine.tokenizer.chat_template = TEMPLATE
  whole = Asked(tmp_path / 'whole', engine, decoding(), QUESTIONS[:1])
  ((tokens,),) = whole.tokens.values()
  assert len(tokens) == 8
  at = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
  name = engine.tokenizer.convert_ids_to_tokens(tokens[at])
  engine.tokenizer.eos_token = name
  messages = [{'role': 'user', 'content': QUESTIONS[0].turns[0]}]
  (wanted,) = type(engine).generate(engine, messages, decoding())
  asked = Asked(tmp_path / 'chat', engine, decoding(), QUESTIONS[:1])
  assert asked.tokens == {0: [tuple(wanted.tokens)]}
  assert tuple(wanted.tokens) == tokens[: at + 1]
  assert asked.answers[0].turns[0].detail.finish_reason == 'eos'
  applied = asked.runner.decode.sampling
  assert tokens[at] in engine.resolve(applied).config.eos_token_id
  # Plain text goes on, and so does a chat whose ends are given.
  text = Runner(engine, decoding(), QUESTIONS, None, MODEL, chat=False)
  assert text.decode == decoding()
  given = decoding(eos_token_id=(3,))
  assert Runner(engine, given, QUESTIONS, None, MODEL).decode == given


def test_a_text_begins_once_as_it_does_elsewhere(tmp_path, engine):
  engine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
    single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
  )
  text = '<|endoftext|>import os'
  asked = Asked(
    tmp_path,
    engine,
    decoding(),
    [dataclasses.replace(question(text), question_id='a')],
  )
  (call,) = engine.calls
  assert call.prompts == engine.encode([text])
  assert call.prompts[0].count(0) == 1 and len(asked.answers) == 1


def test_a_template_can_be_left_alone_and_must_be_there(tmp_path, engine):
  said = refusal(tmp_path, engine, decoding(), chat=True)
  assert said == (
    "question_id='a': the tokenizer has no chat template: this is no chat model"
  )
  engine.tokenizer.chat_template = TEMPLATE
  Asked(tmp_path, engine, decoding(), QUESTIONS[:1], chat=False)
  (ids,) = engine.calls[0].prompts
  assert engine.tokenizer.decode(ids) == QUESTIONS[0].turns[0]


@pytest.mark.parametrize('has_bos', [False, True])
def test_a_prompt_that_leaves_no_room_loses_its_beginning(
  tmp_path, engine, has_bos
):
  tokenizer = engine.tokenizer
  if has_bos:
    tokenizer.bos_token = '<|endoftext|>'
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
    )
  long = ' '.join(f'value_{i} = {i}' for i in range(90))
  whole = tokenizer(long)['input_ids']
  room = CONTEXT - 8
  assert len(whole) > room + 20 and (whole[0] == 0) == has_bos
  short = question('import os')
  fits = dataclasses.replace(question(tokenizer.decode(whole[-9:])), index=2)
  questions = [short, dataclasses.replace(question(long), index=1), fits]
  questions = [
    dataclasses.replace(q, question_id=i)
    for q, i in zip(questions, IDS, strict=False)
  ]
  asked = Asked(tmp_path, engine, decoding(batch_size=1), questions)
  found = engine.calls[1].prompts[0]
  assert len(found) == room
  kept = room - has_bos
  assert found == whole[:has_bos] + whole[-kept:]
  details = [asked.answers[i].turns[0].detail for i in range(3)]
  assert [d.truncated for d in details] == [0, len(whole) - room, 0]
  assert details[1].prompt_tokens == room
  assert len(details[1].tokens) == 8  # what the room was for


def test_a_prompt_of_just_the_room_stays_whole(tmp_path, engine):
  room = len(engine.tokenizer(QUESTIONS[0].turns[0])['input_ids'])
  for less in (0, 1):
    decode = decoding(max_new_tokens=CONTEXT - room + less)
    asked = Asked(tmp_path / str(less), engine, decode, QUESTIONS[:1])
    detail = asked.answers[0].turns[0].detail
    assert (detail.prompt_tokens, detail.truncated) == (room - less, less)


def test_a_later_prompt_that_leaves_no_room_loses_its_beginning(
  tmp_path, engine
):
  decode = decoding(max_new_tokens=CONTEXT - 20)
  asked = Asked(tmp_path, engine, decode, QUESTIONS[3:4])
  one, two = QUESTIONS[3].turns
  first = asked.answers[5].turns[0].text
  whole = engine.tokenizer(f'{one}{first}\n\n{two}')['input_ids']
  assert len(whole) > 20
  assert engine.calls[1].prompts == [whole[-20:]]
  truncated = [turn.detail.truncated for turn in asked.answers[5].turns]
  assert truncated == [0, len(whole) - 20]


@pytest.mark.parametrize('given', [CONTEXT, CONTEXT + 9, None])
def test_no_room_for_a_prompt_is_refused(tmp_path, engine, monkeypatch, given):
  if given is None:  # of the model's file
    defaults = SamplingConfig(max_new_tokens=CONTEXT)
    monkeypatch.setattr(engine, 'defaults', defaults)
  said = refusal(tmp_path, engine, decoding(max_new_tokens=given))
  assert said == (
    f'sampling.max_new_tokens={given or CONTEXT}: leaves no room for a prompt'
    f' in max_position_embeddings={CONTEXT}'
  )


def test_a_bad_prompt_is_named_before_anything_is_asked(tmp_path, engine):
  engine.tokenizer.add_tokens(['<odd>'])
  odd = dataclasses.replace(QUESTIONS[2], turns=('x <odd> y',))
  said = refusal(tmp_path, engine, decoding(), [*QUESTIONS[:2], odd])
  wanted = 'token 2048 is outside the vocabulary of 2048'
  assert said.startswith("question_id='c': ") and said.endswith(wanted)
  empty = dataclasses.replace(QUESTIONS[2], turns=('',))
  said = refusal(tmp_path, engine, decoding(), [*QUESTIONS[:2], empty])
  assert said == "question_id='c': the prompt is empty"


def test_a_later_turn_that_is_refused_is_named_before_too(tmp_path, engine):
  engine.tokenizer.chat_template = TEMPLATE
  bad = dataclasses.replace(QUESTIONS[1], turns=('fine', 'no', 'fine'))
  said = refusal(tmp_path, engine, decoding(), [QUESTIONS[0], bad])
  assert said.startswith('question_id=7: the chat template refuses ')
  assert said.endswith('TemplateError: not that')


def test_later_turns_are_asked_of_those_who_have_them(tmp_path, engine):
  asked = Asked(tmp_path, engine, decoding(batch_size=5))
  (batch,) = asked.runner.batches
  ridden = [[q.index for q in batch if len(q.turns) > n] for n in range(3)]
  assert [len(row) for row in ridden] == [5, 2, 1]
  assert [call.indices for call in engine.calls] == [
    [index + turn * 2**24 for index in row] for turn, row in enumerate(ridden)
  ]
  together = asked.tokens
  assert {i: len(turns) for i, turns in together.items()} == {
    q.index: len(q.turns) for q in QUESTIONS
  }
  alone = Asked(tmp_path / 'alone', engine, decoding(batch_size=1))
  assert alone.tokens == together
  answer = asked.answers[0]
  assert (answer.question_id, answer.category) == ('a', 'qa')
  assert (answer.reference, answer.method) == (('one',), 'plain')
  assert (answer.skip_ratio, answer.matchness) == (None, None)


def test_each_turn_has_draws_of_its_own(tmp_path, engine):
  """The same for every batch size and order, and for what goes on later."""
  drawn = {'temperature': 0.8, 'seed': 3}
  decode = decoding(batch_size=5, max_new_tokens=16, **drawn)
  together = Asked(tmp_path / 'together', engine, decode).tokens
  one = dataclasses.replace(decode, batch_size=1)
  alone = Asked(tmp_path / 'alone', engine, one, QUESTIONS[::-1]).tokens
  assert together == alone
  # The first turn's draws would have made another text of the second prompt.
  second = engine.calls[1]
  index = second.indices[0]
  assert together[index % 2**24][1] == tuple(second.results[0].tokens)
  (other,) = engine.generate(second.prompts[:1], decode, [index % 2**24])
  assert other.tokens != second.results[0].tokens


def test_only_what_is_missing_is_asked(tmp_path, engine):
  whole = Asked(tmp_path / 'whole', engine, decoding(batch_size=2))
  engine.calls.clear()
  batches = whole.runner.batches
  done = {batches[0][0].index, *(q.index for q in batches[1])}
  asked = Asked(tmp_path / 'rest', engine, decoding(batch_size=2), done=done)
  assert asked.runner.batches == batches
  left = [batches[0][1].index, *(q.index for q in batches[2])]
  firsts = [call.indices for call in engine.calls if max(call.indices) < 2**24]
  assert firsts == [[index] for index in left]
  assert asked.tokens == {i: whole.tokens[i] for i in left}
  engine.calls.clear()
  everything = [question.index for question in QUESTIONS]
  asked = Asked(tmp_path / 'none', engine, decoding(), done=everything)
  assert not engine.calls and not asked.batches and not asked.answers


def test_processes_in_step_write_each_its_own(tmp_path, engine):
  alone = Asked(tmp_path / 'alone', engine, decoding()).tokens
  found = {}
  for process in (0, 1):
    mine = QUESTIONS[process::2]
    asked = Asked(
      tmp_path / str(process), engine, decoding(), is_mine=mine.__contains__
    )
    assert set(asked.answers) == {question.index for question in mine}
    shown = {answer.index for batch in asked.batches for answer in batch}
    assert shown == set(alone)
    found |= asked.tokens
  assert found == alone


def clock(wait):
  """In place of `time` in the runner: a call takes 12 s, and some waiting."""
  moments = iter(
    second
    for start in itertools.count(0, 100)
    for second in (start, start + 12, start + 12 + wait)
  )
  return types.SimpleNamespace(
    perf_counter=lambda: next(moments), time=lambda: 1234.5
  )


@pytest.mark.parametrize(
  'method, wait',
  [
    ('swift', 2.0),
    ('plain', 0.0),
    pytest.param('prompt_lookup', 0.0, marks=pytest.mark.nightly),
  ],
)
def test_a_batchs_seconds_are_split_over_its_rows(
  tmp_path, engine, monkeypatch, method, wait
):
  monkeypatch.setattr(runner, 'time', clock(wait))
  asked = Asked(tmp_path, engine, decoding(method))
  found = asked.answers
  assert {len(call.indices) for call in engine.calls} == {1, 2, 3}
  for call in engine.calls:
    numbers = [divmod(index, 2**24) for index in call.indices]
    turns = [found[index].turns[number] for number, index in numbers]
    assert [t.wall_s for t in turns] == [(12 + wait) / len(turns)] * len(turns)
    metrics = call.results[0].metrics
    for name in ('prefill_s', 'decode_s', 'draft_s', 'verify_s', 'search_s'):
      total = sum(getattr(t.detail, name) for t in turns)
      waited = wait if name == 'search_s' else 0
      assert total == pytest.approx(getattr(metrics, name) + waited)
  total = len(engine.calls) * (12 + wait)
  assert sum(answer.wall_s for answer in found.values()) == pytest.approx(total)
  assert all(answer.tstamp == 1234.5 for answer in found.values())


@pytest.mark.parametrize(
  'method',
  [
    'swift',
    'plain',
    pytest.param('prompt_lookup', marks=pytest.mark.nightly),
  ],
)
def test_what_is_written_adds_up(tmp_path, engine, method, monkeypatch):
  # No round runs in halves where plain steps are forced.
  monkeypatch.setattr(Governor, 'may_draft', True)
  decode = dataclasses.replace(
    decoding(method), phase_interval=2, rounds_per_dispatch=2
  )
  asked = Asked(tmp_path, engine, decode)
  results = {
    index: result
    for call in engine.calls
    for index, result in zip(call.indices, call.results, strict=True)
  }
  for index, answer in asked.answers.items():
    at = 0
    for number, turn in enumerate(answer.turns):
      result, detail = results[index + number * 2**24], turn.detail
      lengths = answer.accept_lengths[at : at + turn.steps]
      at += turn.steps
      assert lengths == tuple(r.returned for r in result.rounds)
      assert sum(lengths) == turn.new_tokens == len(detail.tokens) == 8
      assert turn.steps == result.metrics.verify_passes
      assert (turn.text, list(detail.tokens)) == (result.text, result.tokens)
      assert detail.finish_reason == 'length'
      if method == 'plain':
        assert (detail.drafted, detail.accepted) == ((), ())
        assert (detail.draft_s, lengths) == (0, (1,) * 8)
        assert detail.search_s < 1e-4
      else:
        assert sum(detail.drafted) == result.metrics.drafted
        assert sum(detail.accepted) == result.metrics.accepted
        for drafted, accepted, returned in zip(
          detail.drafted, detail.accepted, lengths, strict=True
        ):
          assert accepted <= drafted and accepted <= returned
      parts = detail.prefill_s + detail.decode_s + detail.search_s
      assert 0 < parts <= turn.wall_s
      assert detail.draft_s + detail.verify_s <= detail.decode_s
    assert at == len(answer.accept_lengths)
    if method == 'swift':
      assert answer.skip_ratio == 0.5
  halves = sum(
    turn.detail.verify_s
    for answer in asked.answers.values()
    for turn in answer.turns
  )
  assert (halves > 0) == (method != 'plain')


@pytest.mark.parametrize('method', ['swift', 'plain'])
def test_what_the_search_learnt_is_saved_with_each_batch(
  tmp_path, engine, method
):
  saved = []
  real = Workdir.save_search

  class Watched(Workdir):
    def save_search(self, state):
      real(self, state)
      saved.append(len(self.answered))

  with contextlib.closing(Watched(str(tmp_path), 0, 1)) as workdir:
    workdir.open(FACTS, IDS)
    decode = decoding(method)
    asked = Runner(engine, decode, QUESTIONS, workdir, MODEL)
    asked.run((), lambda batch: None)
    if method == 'plain':
      assert not saved and not workdir.read_search()
      return
    assert saved == [3, 5]  # after the answers, and with them
    assert workdir.read_search().decode() == engine.search_state()
    iterations = json.loads(workdir.read_search())['search']['learnt']
    assert iterations['iterations'] == engine.searcher.iterations > 0


def test_nothing_that_is_asked_compiles(tmp_path, folder):
  """Not even for a last turn behind all answers before it."""
  jax.clear_caches()  # other tests may have compiled the same
  engine = Engine.from_pretrained(str(folder), draft=DRAFT, search=SEARCH)
  decode = decoding(batch_size=2, max_new_tokens=60)
  with contextlib.closing(Workdir(str(tmp_path), 0, 1)) as workdir:
    workdir.open(FACTS, IDS)
    asked = Runner(engine, decode, QUESTIONS, workdir, MODEL)
    compilations = Compilations()
    asked.warm_up()
    warm = compilations.count
    assert warm > 0 and not engine.searcher.iterations
    asked.run((), lambda batch: None)
    assert compilations.count == warm
