"""Writes text from prompts.

  python launch/generate.py --config=configs/demo.py --prompt='def main():'
  python launch/generate.py --prompts_file=prompts.jsonl --output_json=out.jsonl
  python launch/generate.py --chat --prompt='Who are you?' --config.model.path=...

Every field of the config can be set: --config.decode.method=plain,
--config.model.path=FOLDER_OR_HUB_ID, --config.sampling.temperature=0.6, ...

Text goes to standard output as it is written. In a batch this holds for the first
prompt's text; the other texts follow whole, so that texts do not mix. A line on
standard error names settings that apply though the user did not set them (from the
model's generation_config.json, or Hugging Face's top_k=50).

In a chat, the model continues a last message of the assistant, and the text is only
the continuation. --chat_template_kwargs='{"continue_final_message": false}' closes
the message instead.
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
  'prompts, on each line a JSON object with "prompt"; the file may be compressed'
  ' with gzip and lie on gs://; - reads standard input',
)
_CHAT = flags.DEFINE_boolean(
  'chat',
  False,
  "each prompt is a user's message in the tokenizer's chat template; a line of"
  ' the prompts file may hold "messages" instead: objects with role and content',
)
_CHAT_TEMPLATE_KWARGS = flags.DEFINE_string(
  'chat_template_kwargs',
  None,
  'arguments of the chat template, a JSON object; for instance'
  ' \'{"enable_thinking": false}\' or {"tools": [...]}. A line of the prompts file'
  ' may hold its own, and "tools"',
)
_OUTPUT_JSON = flags.DEFINE_string(
  'output_json', None, 'file that gets one JSON line for each prompt'
)

# Readers rely on the record's names: a new field of `Metrics` does not appear here
# by itself.
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
_CHUNK = 2**20  # bytes that are read at a time


def encode(
  engine: Engine, prompts: Sequence[Prompt], arguments: dict[str, Any]
) -> tuple[list[str | list[int]], int]:
  """The engine's inputs, and the number of tokens of the longest prompt.

  An input is a prompt's text, or in a chat the token ids that the template gives.

  Args:
    arguments: arguments of the template; a prompt's own argument of the same name
      goes before.

  Raises:
    InputError: the model cannot take a prompt; the error names its flag or line.
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
  """A file of JSON lines that gets its name once all lines are there.

  Until then the lines lie in `FILE.partial`, which no other run may write meanwhile.
  A run that breaks off leaves its complete lines there, until the next run has a
  line of its own. If there are no complete lines, it removes the file.
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
    """Removes the lines of an earlier run, which lay there until now."""
    if not self._has_begun:
      self._file.truncate(0)
      self._has_begun = True

  def _note(self, error: BaseException) -> None:
    """Notes on the error which lines are kept, or removes the empty file."""
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
    chunks = iter(lambda: self._file.read(_CHUNK), b'')
    return sum(chunk.count(b'\n') for chunk in chunks)

  def _named_errors(self) -> contextlib.AbstractContextManager[None]:
    return atomic.named_errors(f'{self._where}: cannot be written')


def record(result: Result) -> dict[str, Any]:
  """The object of one line of the output."""
  fields = dataclasses.asdict(result)
  del fields['rounds']  # only evaluate.py writes them
  fields['metrics'] = {name: fields['metrics'][name] for name in METRICS}
  if result.logprobs is None:
    del fields['logprobs']
  return fields


def write_texts(
  engine: Engine, prompts: Sequence[str | list[int]], decode: DecodeConfig
) -> Iterator[Result]:
  """Generates batch by batch, and shows the texts in order.

  A batch's results come before its texts are shown, the first text excepted.
  """
  for at in range(0, len(prompts), decode.batch_size):

    def first_only(row: int, piece: str) -> None:
      if row == 0:
        console.show_text(row, piece)

    _title(at, len(prompts))
    batch = prompts[at : at + decode.batch_size]
    indices = range(at, at + len(batch))
    results = engine.generate(batch, decode, first_only, indices=indices)
    yield from results  # the caller gets them even if nobody reads the texts
    for row, result in enumerate(results):
      if row:
        _title(at + row, len(prompts))
        console.show_text(row, result.text)
      console.write('\n')


def _title(index: int, count: int) -> None:
  if count > 1:
    console.write(f'--- prompt {index + 1} of {count}\n')


def show_progress(work: Iterable[Any], count: int) -> Iterable[Any]:
  """A progress bar, unless texts go to a terminal or there is one prompt only."""
  is_watched = sys.stdout is not None and sys.stdout.isatty()
  disable = is_watched or count == 1
  return progress.bar(work, total=count, unit='prompt', disable=disable)


def check_output(path: str, config: ConfigDict) -> None:
  """Refuses an output file that another flag or setting names too.

  Raises:
    InputError: there is one; the error names it.
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
    # Compiles first, so that the times are those of writing alone.
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
