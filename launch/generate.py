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
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import sys
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from absl import flags
import common
from ml_collections import ConfigDict

from swift_jax import progress
from swift_jax.errors import InputError

if TYPE_CHECKING:
  from swift_jax import DecodeConfig, Engine, Result

_PROMPT = flags.DEFINE_string('prompt', None, 'one prompt')
_PROMPTS_FILE = flags.DEFINE_string(
  'prompts_file',
  None,
  'prompts, one JSON object with "prompt" a line; - reads standard input',
)
_CHAT = flags.DEFINE_boolean(
  'chat',
  False,
  "prompts are a user's messages, put into the tokenizer's chat template; a line of"
  ' the prompts file may hold "messages" instead: objects with role and content',
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


class Prompt(NamedTuple):
  """A prompt, and the flag or line it came from; in a chat, its messages."""

  where: str
  text: str | list[dict[str, Any]]


def read_prompts(
  prompt: str | None, path: str | None, is_chat: bool = False
) -> list[Prompt]:
  """The prompts that the flags name.

  Raises:
    InputError: names the flag, or the file and its line.
  """
  if prompt is not None and path is not None:
    raise InputError(
      f'--prompt={prompt!r} and --prompts_file={path}: expected one of them'
    )
  if path is not None:
    return _read_file(path, is_chat)
  if prompt is None:
    raise InputError('--prompt or --prompts_file is needed')
  return [_as_chat(_checked('--prompt', prompt), is_chat)]


def _as_chat(prompt: Prompt, is_chat: bool) -> Prompt:
  """The prompt as a user's message, in a chat."""
  if not is_chat or not isinstance(prompt.text, str):
    return prompt
  message = {'role': 'user', 'content': prompt.text}
  return prompt._replace(text=[message])


def _read_file(path: str, is_chat: bool) -> list[Prompt]:
  where = f'--prompts_file={path}'
  try:
    raw = _standard_input() if path == '-' else pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(f'{where}: {error.strerror}') from None
  # Bytes are split, not text: JSON strings may hold other line separators.
  prompts = [
    _as_chat(_parse_line(f'{where}, line {number}', line, is_chat), is_chat)
    for number, line in enumerate(raw.split(b'\n'), 1)
    if line.strip()
  ]
  if not prompts:
    raise InputError(f'{where}: holds no prompts')
  return prompts


def _standard_input() -> bytes:
  if sys.stdin is None:  # closed by whoever started us
    raise OSError(errno.EBADF, 'standard input is closed')
  return sys.stdin.buffer.read()


def _parse_line(where: str, line: bytes, is_chat: bool) -> Prompt:
  try:
    value = json.loads(line.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None
  if is_chat and isinstance(value, dict) and 'messages' in value:
    return Prompt(where, _messages(where, value['messages']))
  if not isinstance(value, dict) or not isinstance(value.get('prompt'), str):
    wanted = 'expected an object with a string "prompt"'
    if isinstance(value, dict) and 'messages' in value:
      wanted += ', or --chat for "messages"'
    raise InputError(f'{where}: {wanted}, found {value!r:.80}')
  return _checked(where, value['prompt'])


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
  ok = isinstance(value, list) and all(
    isinstance(m, dict) and isinstance(m.get('role'), str) for m in value
  )
  if not ok or not value:
    raise InputError(
      f'{where}: expected "messages" with role and content, found {value!r:.80}'
    )
  return value


def _checked(where: str, prompt: str) -> Prompt:
  if not prompt:
    raise InputError(f'{where}: the prompt is empty')
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise InputError(f'{where}: {prompt!r:.80} is not text: {error}') from None
  return Prompt(where, prompt)


def encode(
  engine: Engine, prompts: Sequence[Prompt]
) -> tuple[list[str | list[int]], int]:
  """What the engine is given, and the tokens of the longest prompt.

  That is a prompt's text, or in a chat the token ids of the template.

  Raises:
    InputError: a prompt that the model cannot take; says where it came from.
  """
  given, longest = [], 0
  for prompt in prompts:
    try:
      (tokens,) = engine.encode([prompt.text])
    except InputError as error:
      raise InputError(f'{prompt.where}: {error}') from None
    given.append(prompt.text if isinstance(prompt.text, str) else tokens)
    longest = max(longest, len(tokens))
  return given, longest


class JsonLines:
  """Lines that take the file's name once all of them are there.

  Until then they lie in `FILE.partial`; a run that breaks off leaves what was
  complete there until the next one, and removes the file if that is nothing.
  """

  def __init__(self, path: str):
    self._path = pathlib.Path(path)
    self._partial = pathlib.Path(f'{path}.partial')
    self._file: IO[str] | None = None
    self._count = 0

  def __enter__(self) -> JsonLines:
    with self._named_errors():
      if self._path.exists() and not self._path.is_file():
        raise InputError(f'--output_json={self._path}: not a file')
      if self._path.exists() and not os.access(self._path, os.W_OK):
        raise PermissionError(None, 'not writable')
      self._file = open(self._partial, 'w', encoding='utf-8')
    return self

  def write(self, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False) + '\n'
    with self._named_errors():
      self._file.write(line)
      self._file.flush()
    self._count += 1

  def __exit__(
    self, kind: type | None, error: BaseException | None, _: object
  ) -> None:
    with self._named_errors():
      self._file.close()
      if kind is None:
        os.replace(self._partial, self._path)
      elif not self._count:
        self._partial.unlink()
      else:
        error.add_note(
          f'{self._count} answers are in {self._partial}: keep them by moving'
          ' that, for the next run begins anew'
        )

  @contextlib.contextmanager
  def _named_errors(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise InputError(
        f'--output_json={self._path}: cannot be written: {error.strerror}'
      ) from error


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
  """Generates batch by batch and shows each text, in order."""
  for at in range(0, len(prompts), decode.batch_size):

    def first_only(row: int, piece: str) -> None:
      if row == 0:
        common.show_text(row, piece)

    _title(at, len(prompts))
    batch = prompts[at : at + decode.batch_size]
    indices = range(at, at + len(batch))
    results = engine.generate(batch, decode, first_only, indices=indices)
    for row, result in enumerate(results):
      if row:
        _title(at + row, len(prompts))
        common.show_text(row, result.text)
      common.write('\n')
      yield result


def _title(index: int, count: int) -> None:
  if count > 1:
    common.write(f'--- prompt {index + 1} of {count}\n')


def show_progress(work: Iterable[Any], count: int) -> Iterable[Any]:
  """A bar, unless there are texts to watch or just one to wait for."""
  is_watched = sys.stdout is not None and sys.stdout.isatty()
  disable = is_watched or count == 1
  return progress.bar(work, total=count, unit='prompt', disable=disable)


def main(config: ConfigDict) -> None:
  prompts = read_prompts(_PROMPT.value, _PROMPTS_FILE.value, _CHAT.value)
  decode = common.decode_config(config)
  path = _OUTPUT_JSON.value
  if path is None:
    decode = common.without_logprobs(decode)
  with contextlib.ExitStack() as stack:
    output = None if path is None else stack.enter_context(JsonLines(path))
    engine = common.load_engine(config)
    # Refuses a bad prompt before any text is written.
    given, longest = encode(engine, prompts)
    applied = engine.resolve(decode.sampling)
    common.announce(engine.describe())
    # So that the times are those of writing.
    engine.warmup(decode, longest, search=False)
    if applied.is_remarkable:
      print(applied.describe(), file=sys.stderr)
    pairs = zip(prompts, write_texts(engine, given, decode), strict=True)
    for prompt, result in show_progress(pairs, len(prompts)):
      if output is not None:
        result = dataclasses.replace(result, prompt=prompt.text)
        output.write(record(result))


if __name__ == '__main__':
  common.run(main)
