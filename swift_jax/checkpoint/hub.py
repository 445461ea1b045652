"""Finds or fetches a checkpoint's files, and reads the tokenizer among them."""

from __future__ import annotations

from collections.abc import Sequence
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
# No pickles are fetched: unpickling runs code.
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


def resolve(
  path: str | os.PathLike[str], files: Sequence[str] = _HUB_FILES
) -> pathlib.Path:
  """The local folder of a checkpoint.

  Args:
    path: a folder; a hub id or an address on an object store (gs://), whose files
      are fetched first; or `demo`, the model that comes with the package.
    files: patterns of the files that are fetched.

  Raises:
    InputError: `path` is none of these, or the files cannot be fetched.
  """
  if not isinstance(path, (str, os.PathLike)):
    raise InputError(f'path={path!r:.80}: {_WANTED}')
  path = os.fspath(path)
  if '://' in path:
    return _from_store(path, files)
  try:
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
      return folder
    is_file = folder.exists()
  # A folder without permission, a name that is too long, an unknown user's home.
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
        path, allow_patterns=list(files), ignore_patterns=_HUB_COPIES
      )
    )
  # The errors of the hub, of httpx and of the system share no narrower base class.
  except Exception as error:
    raise InputError(
      f'{path}: no such folder, and not to be had from the hub:'
      f' {_advice(path, error)}'
    ) from error


def _advice(path: str, error: Exception) -> str:
  """The advice for an error of the hub."""
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
  """The user's folder for files that can be fetched or made again.

  Raises:
    InputError: there is no home folder, for instance for a user without a name.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    return pathlib.Path(cache).expanduser() / 'swift_jax'
  except RuntimeError as error:
    raise InputError(f'{cache}: {one_line(error)} Set XDG_CACHE_HOME') from None


def _from_store(path: str, files: Sequence[str]) -> pathlib.Path:
  """A local copy of a store's checkpoint; changed files are copied again."""
  name = hashlib.sha256(path.rstrip('/').encode()).hexdigest()[:16]
  folder = cache_folder() / name
  try:
    found = [
      file
      for file in epath.Path(path).iterdir()
      if any(fnmatch.fnmatch(file.name, kind) for kind in files)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
      is_partial = old.name.startswith('.')
      if not is_partial and old.name not in {file.name for file in found}:
        old.unlink()
    for file in found:
      _copy(file, folder / file.name)
  # The system's errors, and the errors of a store's client, which may be missing.
  except Exception as error:
    raise InputError(f'{path}: cannot be fetched: {one_line(error)}') from error
  if not found:
    raise InputError(f'{path}: holds no checkpoint')
  return folder


def _copy(source: epath.Path, target: pathlib.Path) -> None:
  """Copies a file, whole or not at all, unless an up-to-date copy is there."""
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
  """The transformers tokenizer in `folder`, unchecked.

  Raises:
    InputError: one of its files is a Git LFS pointer.
    Exception: as transformers raises it; the tokenizers library raises plain
      Exceptions.
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
  # A pointer's text would pass for a template: only a chat needs the error.
  except InputError as error:
    message = json.dumps(str(error))
    tokenizer.chat_template = f'{{{{ raise_exception({message}) }}}}'
  return tokenizer


def load_tokenizer(folder: pathlib.Path, cfg: ModelConfig) -> Any:
  """The transformers tokenizer in `folder`, checked against the model.

  Raises:
    InputError: the tokenizer is missing or broken, or larger than the model's
      vocabulary.
  """
  if not any(folder.glob('tokenizer*')):
    raise InputError(f'{folder}: no tokenizer.json found')
  try:
    tokenizer = read_tokenizer(folder)
    # Tokens added behind the vocabulary (CodeLlama-34b has some) do no harm unless
    # a prompt uses them; then the prompt is refused.
    vocab = tokenizer.get_vocab()  # each call makes a new dict
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
