"""A small evaluation whose figures can be worked out by hand.

Three questions: 1 and 2 are of one task, 3 has two turns. Both methods write
the same tokens; question 2 loops.
"""

import json
import pathlib

from swift_jax.evaluation.answers import Answer, Detail, Turn

MODEL = 'llama'
TOKENS = {
  1: [(1, 2, 3, 4)],
  2: [(7,) * 8],
  3: [(1, 2, 3, 4), (5, 6, 7, 8)],
}
CATEGORIES = {1: 'qa', 2: 'qa', 3: 'writing'}


def turn(
  tokens, wall_s, lengths, drafted=(), accepted=(), phases=(), sample=(0.0, 0.0)
):
  """A text whose tokens are letters: 1 is a, 2 is b."""
  prefill_s, decode_s, search_s = phases
  detail = Detail(
    tokens=tuple(tokens),
    prompt_tokens=5,
    truncated=0,
    finish_reason='length',
    drafted=tuple(drafted),
    accepted=tuple(accepted),
    prefill_s=prefill_s,
    decode_s=decode_s,
    search_s=search_s,
    draft_s=sample[0],
    verify_s=sample[1],
  )
  text = ''.join(chr(ord('a') + token - 1) for token in tokens)
  return Turn(text, len(tokens), len(lengths), wall_s, detail)


def answer(question_id, method, turns, lengths, tstamp, **fields):
  """One line; `index` goes by the question's number."""
  return Answer(
    question_id=question_id,
    category=CATEGORIES.get(question_id, 'qa'),
    answer_id=f'{method}-{question_id}',
    model_id=MODEL,
    turns=tuple(turns),
    accept_lengths=tuple(lengths),
    tstamp=tstamp,
    **{'index': question_id - 1, 'method': method, **fields},
  )


def plain() -> tuple[Answer, ...]:
  """20 tokens in 10 seconds: 4, 2 and 1.6 tokens/s."""
  (one,), (two,), (three, four) = TOKENS.values()
  ones = (1,) * 4
  return (
    answer(
      1, 'plain', [turn(one, 1.0, ones, phases=(0.25, 0.75, 0.0))], ones, 100.0
    ),
    answer(
      2,
      'plain',
      [turn(two, 4.0, ones * 2, phases=(1.0, 2.5, 0.0))],
      ones * 2,
      104.0,
    ),
    answer(
      3,
      'plain',
      [
        turn(three, 2.0, ones, phases=(0.5, 1.5, 0.0)),
        turn(four, 3.0, ones, phases=(0.75, 2.25, 0.0)),
      ],
      ones * 2,
      109.0,
    ),
  )


def swift() -> tuple[Answer, ...]:
  """20 tokens in 4 seconds and 8 passes: 4, 8 and 4 tokens/s."""
  (one,), (two,), (three, four) = TOKENS.values()
  first = turn(
    one, 1.0, (3, 1), (3, 2), (2, 0), (0.25, 0.5, 0.25), (0.125, 0.125)
  )
  second = turn(
    two, 1.0, (5, 3), (4, 4), (4, 2), (0.25, 0.5, 0.125), (0.0, 0.25)
  )
  third = turn(three, 1.0, (4,), (3,), (3,), (0.25, 0.5, 0.25))
  fourth = turn(four, 1.0, (2, 1, 1), (1, 1, 0), (1, 0, 0), (0.25, 0.5, 0.0))
  state = {'skip_ratio': 0.5, 'matchness': 0.75}
  return (
    answer(1, 'swift', [first], (3, 1), 203.0, **state),
    answer(2, 'swift', [second], (5, 3), 201.0, **state),
    answer(3, 'swift', [third, fourth], (4, 2, 1, 1), 205.0, **state),
  )


def run_facts(indices=(0, 1, 2), **changes) -> dict:
  """What run.json holds."""
  return {
    'num_processes': 1,
    'model_id': MODEL,
    'indices': list(indices),
    'config': {
      'task': {'name': 'spec_bench'},
      'model': {'path': 'llama', 'dtype': 'float32'},
      'decode': {'batch_size': 1, 'method': 'plain'},
      'sampling': {'temperature': 0.0, 'max_new_tokens': 8},
    },
    'versions': {'jax': '0.10.2', 'numpy': '2.4.6'},
    'device': 'cpu',
    'cpus': 2,
    'commit': 'abc',
    'fingerprint': '0123456789abcdef',
    'questions': 'feedbeef',
    **changes,
  }


def write_run(folder: pathlib.Path, answers, **changes) -> pathlib.Path:
  """A finished run's folder."""
  from swift_jax.evaluation import answers as answer_lines

  folder.mkdir(parents=True)
  facts = run_facts([answer.index for answer in answers], **changes)
  (folder / 'run.json').write_text(json.dumps(facts))
  lines = ''.join(map(answer_lines.to_line, answers))
  (folder / 'answers.jsonl').write_text(lines)
  return folder
