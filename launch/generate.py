"""Writes text from prompts.

  python launch/generate.py --config=configs/demo.py --prompt='def main():'
  python launch/generate.py --prompts_file=prompts.jsonl --output_json=out.jsonl

Every field of the config can be set: --config.decode.method=plain,
--config.model.path=FOLDER_OR_HUB_ID, --config.draft.max_draft_length=8, ...
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from typing import TextIO

from absl import flags
import common
import ml_collections

from swift_jax.errors import InputError

_PROMPT = flags.DEFINE_string('prompt', None, 'one prompt')
_PROMPTS_FILE = flags.DEFINE_string(
  'prompts_file',
  None,
  'prompts, one JSON object with "prompt" a line; - reads standard input',
)
_OUTPUT_JSON = flags.DEFINE_string(
  'output_json', None, 'one JSON line a prompt goes to this file'
)


def read_prompts() -> list[str]:
  """The prompts that the flags name."""
  prompt, path = _PROMPT.value, _PROMPTS_FILE.value
  if (prompt is None) == (path is None):
    raise InputError('expected either --prompt or --prompts_file')
  if path is None:
    if not prompt:
      raise InputError(f'--prompt={prompt!r}: empty')
    return [prompt]
  try:
    if path == '-':
      lines = sys.stdin.read().splitlines()
    else:
      lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise InputError(f'--prompts_file={path}: {e}') from None
  prompts = [
    _parse_line(f'--prompts_file={path}, line {number}', line)
    for number, line in enumerate(lines, 1)
    if line.strip()
  ]
  if not prompts:
    raise InputError(f'--prompts_file={path}: no prompts')
  return prompts


def _parse_line(where: str, line: str) -> str:
  try:
    value = json.loads(line)
  except ValueError as e:
    raise InputError(f'{where}: not JSON: {e}') from None
  if not isinstance(value, dict) or not isinstance(value.get('prompt'), str):
    raise InputError(f'{where}: expected an object with a string "prompt"')
  if not value['prompt']:
    raise InputError(f'{where}: the prompt is empty')
  return value['prompt']


@contextlib.contextmanager
def output_file(path: str | None) -> Iterator[TextIO | None]:
  """A file that takes its name only when it is complete."""
  if path is None:
    yield None
    return
  if pathlib.Path(path).is_dir():
    raise InputError(f'--output_json={path}: is a directory')
  partial = f'{path}.partial'
  try:
    file = open(partial, 'w', encoding='utf-8')
  except OSError as e:
    raise InputError(f'--output_json={path}: {e.strerror}') from None
  done = False
  try:
    with file:
      yield file
    os.replace(partial, path)
    done = True
  finally:
    if not done and not os.path.getsize(partial):
      os.remove(partial)


def main(config: ml_collections.ConfigDict) -> None:
  prompts = read_prompts()
  decode = common.section(config, 'decode')
  with output_file(_OUTPUT_JSON.value) as output:
    engine = common.load_engine(config)
    engine.encode(prompts)  # refuses a bad prompt before any text is written
    size = decode.batch_size
    live = size == 1  # rows of a larger batch would mix
    for at in range(0, len(prompts), size):
      part = prompts[at : at + size]
      if live:
        _title(at, len(prompts))
        on_text = common.show_text
      else:
        on_text = None
      for b, result in enumerate(engine.generate(part, decode, on_text)):
        if not live:
          _title(at + b, len(prompts))
          common.show_text(b, result.text)
        print(flush=True)
        if output is not None:
          line = json.dumps(dataclasses.asdict(result), ensure_ascii=False)
          output.write(line + '\n')
          output.flush()


def _title(index: int, count: int) -> None:
  if count > 1:
    print(f'--- prompt {index + 1} of {count}', flush=True)


if __name__ == '__main__':
  common.run(main)
