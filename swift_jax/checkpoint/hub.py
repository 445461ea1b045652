"""Where a checkpoint's files come from, and the tokenizer among them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

from etils import epath

from swift_jax.checkpoint.hf_config import one_line, refuse_pointer
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError

# The model that comes with the package.
DEMO_MODEL = pathlib.Path(__file__).parents[1] / 'demo' / 'model'
# Never pickles: unpickling runs code.
_HUB_FILES = ('*.json', '*.safetensors', 'tokenizer.model', '*.txt', '*.jinja')
_HUB_COPIES = ('original/*', 'consolidated*')
_TOKENIZER_FILES = (
  'tokenizer*',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab*',
  'merges.txt',
)
_TEMPLATE = 'chat_template.jinja'
_HUB_ID = re.compile(r'\w[\w.-]*/\w[\w.-]*')
_WANTED = (
  'expected the folder of a Hugging Face checkpoint, a hub id as in'
  ' meta-llama/Llama-3.2-1B, or demo'
)


def resolve(path: str | os.PathLike[str]) -> pathlib.Path:
  """The local folder of a checkpoint, fetched first if `path` is a hub id or
  lies on an object store (gs://).

  `demo` is the model that comes with the package.

  Raises:
    InputError: none of these, or hub or store did not give it.
  """
  if not isinstance(path, (str, os.PathLike)):
    raise InputError(f'path={path!r:.80}: {_WANTED}')
  path = os.fspath(path)
  if '://' in path:
    return _from_store(path)
  try:
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
      return folder
    is_file = folder.exists()
  # A folder that may not be entered, a long name; a user that does not exist.
  except (OSError, RuntimeError) as error:
    raise InputError(f'{path}: cannot be read: {one_line(error)}') from None
  if path == 'demo':
    return DEMO_MODEL
  if is_file:
    raise InputError(f'{path}: a file; {_WANTED}')
  if not _HUB_ID.fullmatch(path):
    raise InputError(f'{path}: no such folder; {_WANTED}')
  import huggingface_hub

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        path, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_COPIES
      )
    )
  # The hub's own errors, httpx's and the system's share no narrower base.
  except Exception as error:
    raise InputError(
      f'{path}: no such folder, and not to be had from the hub:'
      f' {_advice(path, error)}'
    ) from error


def _advice(path: str, error: Exception) -> str:
  """What to do about an error of the hub."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):  # a RepositoryNotFoundError too
    return (
      f'it is gated: ask for access on https://huggingface.co/{path}, then'
      ' `hf auth login` or set HF_TOKEN'
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      'it has none of this name; if it is private, `hf auth login` or set'
      ' HF_TOKEN'
    )
  if isinstance(error, errors.LocalEntryNotFoundError):
    return (
      'it cannot be reached (no network, or HF_HUB_OFFLINE is set); give the'
      f' path of a folder with the model instead: {one_line(error)}'
    )
  return one_line(error)


def cache_folder() -> pathlib.Path:
  """The user's folder for what can be fetched or made again.

  Raises:
    InputError: there is no home folder, as for a user that has no name.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    return pathlib.Path(cache).expanduser() / 'swift_jax'
  except RuntimeError as error:
    raise InputError(f'{cache}: {one_line(error)} Set XDG_CACHE_HOME') from None


def _from_store(path: str) -> pathlib.Path:
  """A local copy, as the hub's: made once, and again where a file has changed."""
  name = hashlib.sha256(path.rstrip('/').encode()).hexdigest()[:16]
  folder = cache_folder() / name
  try:
    found = [
      file
      for file in epath.Path(path).iterdir()
      if any(fnmatch.fnmatch(file.name, kind) for kind in _HUB_FILES)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
      is_partial = old.name.startswith('.')
      if not is_partial and old.name not in {file.name for file in found}:
        old.unlink()
    for file in found:
      _copy(file, folder / file.name)
  # The system's errors, and what a store's client is missing or says.
  except Exception as error:
    raise InputError(f'{path}: cannot be fetched: {one_line(error)}') from error
  if not found:
    raise InputError(f'{path}: holds no checkpoint')
  return folder


def _copy(source: epath.Path, target: pathlib.Path) -> None:
  """Copies a file that is not there as it is now, whole or not at all."""
  now = source.stat()
  if target.exists():
    have = target.stat()
    if have.st_size == now.length and have.st_mtime >= (now.mtime or 0):
      return
  partial = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    with source.open('rb') as read, open(partial, 'wb') as write:
      shutil.copyfileobj(read, write, 2**24)
    os.replace(partial, target)
  finally:
    partial.unlink(missing_ok=True)


def read_tokenizer(folder: pathlib.Path) -> Any:
  """The transformers tokenizer in `folder`, as it is.

  Raises:
    InputError: a file of it is a Git LFS pointer.
    Exception: as transformers, and the tokenizers library its plain ones.
  """
  from transformers import AutoTokenizer

  try:
    tokenizer = AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except Exception:
    for kind in _TOKENIZER_FILES:
      for file in sorted(folder.glob(kind)):
        refuse_pointer(file)
    raise
  try:
    refuse_pointer(folder / _TEMPLATE)
  except InputError as error:  # the text of a pointer is a template too
    said = json.dumps(str(error))
    tokenizer.chat_template = f'{{{{ raise_exception({said}) }}}}'
  return tokenizer


def load_tokenizer(folder: pathlib.Path, cfg: ModelConfig) -> Any:
  """The transformers tokenizer in `folder`.

  Raises:
    InputError: missing or broken, or larger than the model's vocabulary.
  """
  if not any(folder.glob('tokenizer*')):
    raise InputError(f'{folder}: no tokenizer.json found')
  try:
    tokenizer = read_tokenizer(folder)
    # Tokens added behind the vocabulary (CodeLlama-34b has some) do no harm
    # unless a prompt uses them, which is refused then.
    vocab = tokenizer.get_vocab()  # made anew at each call
    base = vocab.keys() - tokenizer.get_added_vocab().keys()
    largest = max(vocab[token] for token in base)
  except InputError:
    raise
  # The tokenizers library raises plain Exceptions.
  except Exception as error:
    raise InputError(
      f'{folder}: the tokenizer cannot be read: {one_line(error)}'
    ) from error
  if largest >= cfg.vocab_size:
    raise InputError(
      f'{folder}: the tokenizer has token {largest}, but the model has'
      f' vocab_size={cfg.vocab_size}'
    )
  return tokenizer
