"""Writes text from prompts.

  python launch/generate.py --config=configs/demo.py --prompt='def main():'
  python launch/generate.py --prompts_file=prompts.jsonl --output_json=out.jsonl
  python launch/generate.py --chat --prompt='Who are you?' --config.model.path=...

Every field of the config can be set: --config.decode.method=plain,
--config.model.path=FOLDER_OR_HUB_ID, --config.sampling.temperature=0.6, ...

Text goes to standard output as it comes; in a batch the first prompt's does,
and the others' follow whole, so that they do not mix. What is applied that was not
asked for (a model's generation_config.json, Hugging Face's top_k=50) is said on
standard error.

In a chat, a last message of the assistant's is continued, and the text is only what
the model adds; --chat_template_kwargs='{"continue_final_message": false}' closes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import io
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from cli import common, console
from generate_prompts import Prompt, read_arguments, read_prompts
from ml_collections import ConfigDict

from swift_jax import progress
from swift_jax.errors import InputError
from swift_jax.files import atomic, locks

if TYPE_CHECKING:
  from swift_jax import DecodeConfig, Engine, Result

_PROMPT = flags.DEFINE_string(
  'prompt', None, r'one prompt; escapes as in Python: \n is a line break'
)
_PROMPTS_FILE = flags.DEFINE_string(
  'prompts_file',
  None,
  'prompts, one JSON object with "prompt" a line, gzip or not, local or gs://;'
  ' - reads standard input',
)
_CHAT = flags.DEFINE_boolean(
  'chat',
  False,
  "prompts are a user's messages, put into the tokenizer's chat template; a line of"
  ' the prompts file may hold "messages" instead: objects with role and content',
)
_CHAT_TEMPLATE_KWARGS = flags.DEFINE_string(
  'chat_template_kwargs',
  None,
  'a JSON object: what the chat template is given, \'{"enable_thinking": false}\''
  ' or {"tools": [...]}; a line of the prompts file may hold its own, and "tools"',
)
_OUTPUT_JSON = flags.DEFINE_string(
  'output_json', None, 'one JSON line a prompt goes to this file'
)

# The record's names are promised to readers: what `Metrics` gains does not show
# up here unasked.
METRICS = (
  'method',
  'new_tokens',
  'prefill_s',
  'decode_s',
  'search_s',
  'verify_passes',
  'drafted',
  'accepted',
  'acceptance_rate',
  'mean_accepted_length',
  'skip_ratio',
  'matchness',
  'tokens_per_second',
)
_PIECE = 2**20  # bytes that are read at a time


def encode(
  engine: Engine, prompts: Sequence[Prompt], arguments: dict[str, Any]
) -> tuple[list[str | list[int]], int]:
  """What the engine is given, and the tokens of the longest prompt.

  That is a prompt's text, or in a chat the token ids of the template.

  Args:
    arguments: of the template, where a prompt has none of that name.

  Raises:
    InputError: a prompt that the model cannot take; says where it came from.
  """
  given, longest = [], 0
  for prompt in prompts:
    try:
      if isinstance(prompt.text, str):
        (tokens,) = engine.encode([prompt.text])
        given.append(prompt.text)
      else:
        (tokens,) = engine.encode(
          [prompt.text], {**arguments, **prompt.arguments}
        )
        given.append(tokens)
    except InputError as error:
      raise InputError(f'{prompt.where}: {error}') from None
    longest = max(longest, len(tokens))
  return given, longest


class JsonLines:
  """Lines that take the file's name once all of them are there.

  Until then they lie in `FILE.partial`, which no other run may write meanwhile. A
  run that breaks off leaves what was complete there until the next one has a line
  of its own, and removes the file if that is nothing.
  """

  def __init__(self, path: str):
    self._where = f'--output_json={path}'
    if path == '-':
      raise InputError(f'{self._where}: expected a file; ./- is one')
    self._target = atomic.writable(path, self._where)
    self._partial = self._target.with_name(f'{self._target.name}.partial')
    self._has_begun = False

  def __enter__(self) -> JsonLines:
    with self._named_errors():
      self._file = io.FileIO(locks.take(self._partial), 'r+')
    if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
      self._file.close()
      raise InputError(f'{self._where}: {self._partial} is not a file')
    return self

  def write(self, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False) + '\n'
    with self._named_errors():
      self._begin()
      atomic.append(self._file, line.encode())

  def __exit__(
    self, kind: type | None, error: BaseException | None, _: object
  ) -> None:
    with contextlib.closing(self._file):
      if error is not None:
        self._note(error)
        return
      try:
        with self._named_errors():
          self._begin()
          atomic.move(self._file, self._partial, self._target)
      except InputError as failed:
        self._note(failed)
        raise

  def _begin(self) -> None:
    """Until now the lines of an earlier run were there."""
    if not self._has_begun:
      self._file.truncate(0)
      self._has_begun = True

  def _note(self, error: BaseException) -> None:
    """What is kept though the error came."""
    count = self._lines()
    if count and self._has_begun:
      error.add_note(
        f'{count} answers are in {self._partial}: keep them by moving that,'
        ' for the next run begins anew'
      )
    elif not count:
      with contextlib.suppress(OSError):
        self._partial.unlink()

  def _lines(self) -> int:
    self._file.seek(0)
    pieces = iter(lambda: self._file.read(_PIECE), b'')
    return sum(piece.count(b'\n') for piece in pieces)

  def _named_errors(self) -> contextlib.AbstractContextManager[None]:
    return atomic.named_errors(f'{self._where}: cannot be written')


def record(result: Result) -> dict[str, Any]:
  """One line of the output."""
  fields = dataclasses.asdict(result)
  del fields['rounds']  # evaluate.py's business
  fields['metrics'] = {name: fields['metrics'][name] for name in METRICS}
  if result.logprobs is None:
    del fields['logprobs']
  return fields


def write_texts(
  engine: Engine, prompts: Sequence[str | list[int]], decode: DecodeConfig
) -> Iterator[Result]:
  """Generates batch by batch; shows each text, in order, once it is taken."""
  for at in range(0, len(prompts), decode.batch_size):

    def first_only(row: int, piece: str) -> None:
      if row == 0:
        console.show_text(row, piece)

    _title(at, len(prompts))
    batch = prompts[at : at + decode.batch_size]
    indices = range(at, at + len(batch))
    results = engine.generate(batch, decode, first_only, indices=indices)
    yield from results  # they are complete, whoever still reads the texts
    for row, result in enumerate(results):
      if row:
        _title(at + row, len(prompts))
        console.show_text(row, result.text)
      console.write('\n')


def _title(index: int, count: int) -> None:
  if count > 1:
    console.write(f'--- prompt {index + 1} of {count}\n')


def show_progress(work: Iterable[Any], count: int) -> Iterable[Any]:
  """A bar, unless there are texts to watch or just one to wait for."""
  is_watched = sys.stdout is not None and sys.stdout.isatty()
  disable = is_watched or count == 1
  return progress.bar(work, total=count, unit='prompt', disable=disable)


def check_output(path: str, config: ConfigDict) -> None:
  """Refuses a file that is to hold something else too.

  Raises:
    InputError: names what.
  """
  others = {
    f'search.{name}': config.search[name]
    for name in ('cache', 'save', 'record')
  }
  for name, other in {'--prompts_file': _PROMPTS_FILE.value, **others}.items():
    if other and atomic.is_same(path, other):
      raise InputError(f'--output_json={path}: is the file of {name} too')


def main(config: ConfigDict) -> None:
  prompts = read_prompts(_PROMPT.value, _PROMPTS_FILE.value, _CHAT.value)
  arguments = read_arguments(_CHAT_TEMPLATE_KWARGS.value, _CHAT.value)
  decode = common.decode_config(config)
  path = _OUTPUT_JSON.value
  if path is None:
    decode = common.without_logprobs(decode)
  else:
    check_output(path, config)
  with contextlib.ExitStack() as stack:
    output = None if path is None else stack.enter_context(JsonLines(path))
    engine = common.load_engine(config)
    # Refuses a bad prompt before any text is written.
    given, longest = encode(engine, prompts, arguments)
    if _CHAT.value:
      decode = engine.for_chats(decode)
    applied = engine.resolve(decode.sampling)
    common.announce(engine.describe())
    for line in engine.remarks:
      common.say(line)
    # So that the times are those of writing.
    engine.warmup(decode, longest, search=False)
    if applied.is_remarkable:
      common.say(applied.describe())
    pairs = zip(prompts, write_texts(engine, given, decode), strict=True)
    for prompt, result in show_progress(pairs, len(prompts)):
      if output is not None:
        result = dataclasses.replace(result, prompt=prompt.text)
        output.write(record(result))


if __name__ == '__main__':
  common.run(main)
