"""How tokens are chosen and when a text ends: Hugging Face's names and meaning.

A field that is None is not given. What the caller does not give comes from the
model's `generation_config.json`, and what is not there either from `DEFAULTS`,
which are Hugging Face's own (top_k=50 among them, which few know that they use),
except for max_new_tokens. `resolve` says where each value came from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from swift_jax.config.checks import (
  MAX_INT,
  require,
  require_bool,
  require_int,
  require_number,
  require_text,
)
from swift_jax.errors import InputError

MAX_LOGPROBS = 1000
_FILE = 'generation_config.json'
_MAX_SEED = 2**32 - 1
_MAX_FLOAT = 1e30  # float32 holds it and its inverse


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Settings of the choice of tokens; None: not given.

  Attributes:
    do_sample: draw tokens; else each is the most likely one (greedy). Where it is
      not given, a temperature that is decides: above 0 is sampling.
    temperature: logits are divided by it; 0 is greedy.
    top_k: only the k most likely tokens; 0: all.
    top_p: only the most likely tokens that together have this probability.
    min_p: only tokens at least this likely relative to the most likely one.
    repetition_penalty: logits of tokens in prompt and text are divided by it, or
      multiplied where negative; greedy decoding has it too.
    eos_token_id: tokens that end a text; one or several.
    stop_strings: the text ends before the first of these, one or several. On the
      command line with the escapes of --prompt, and several as ('a', 'b').
    max_new_tokens: tokens written at most for a prompt.
    min_new_tokens: no end-of-text token before so many tokens.
    seed: of the draws. With the index of the prompt in the run it fixes them, and
      with them the text, whatever batch, method or search a prompt rides with.
    use_generation_config: take what is not given from the model's file; without it
      only its end-of-text tokens.
    skip_special_tokens: leave special tokens (`</s>`, `<|im_end|>`) out of the text;
      without it they stand in it, the one that ends it too, and a stop string may
      hold them.
    logprobs: log-probabilities with each result, those of its tokens (0) and of so
      many of the most likely tokens at each place; None: none, which costs
      nothing. It changes no text, and no file of the model's sets it.
  """

  do_sample: bool | None = None
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  repetition_penalty: float | None = None
  eos_token_id: tuple[int, ...] | None = None
  stop_strings: tuple[str, ...] | None = None
  max_new_tokens: int | None = None
  min_new_tokens: int | None = None
  seed: int | None = None
  use_generation_config: bool = True
  skip_special_tokens: bool = True
  logprobs: int | None = None

  def __post_init__(self) -> None:
    for name in ('use_generation_config', 'skip_special_tokens'):
      require_bool(f'sampling.{name}', getattr(self, name))
    if self.logprobs is not None:
      _check_logprobs('sampling.logprobs', self.logprobs)
    for name in FIELDS:
      value = getattr(self, name)
      if value is not None:
        checked = _CHECKS[name](f'sampling.{name}', value)
        object.__setattr__(self, name, checked)

  @property
  def samples(self) -> bool:
    """Tokens are drawn; of a resolved config."""
    return bool(self.do_sample and self.temperature)


@dataclasses.dataclass(frozen=True)
class Resolved:
  """Settings without a gap, and where each came from.

  Attributes:
    config: every field set; `logprobs` as it was given.
    sources: `given`, `generation_config.json` or `default`, by field.
  """

  config: SamplingConfig
  sources: dict[str, str]

  def describe(self) -> str:
    """One line with what is applied, and what is given without effect."""
    cfg = self.config
    kind = 'sampling' if cfg.samples else 'greedy decoding'
    applied = ', '.join(
      f'{name}={getattr(cfg, name)!r}{self._from(name)}'
      for name in self._applied()
      if getattr(cfg, name) != _NEUTRAL[name] or self._is_given(name)
    )
    idle = ', '.join(f'{name}={getattr(cfg, name)!r}' for name in self._idle())
    return f'{kind}: {applied}' + (f'; without effect: {idle}' if idle else '')

  @property
  def is_remarkable(self) -> bool:
    """The text is other than one who reads what the caller gave would think."""
    unasked = any(
      not self._is_given(name)
      and name != 'seed'
      and getattr(self.config, name) != _NEUTRAL[name]
      and (name, self.sources[name]) != ('max_new_tokens', 'default')
      for name in self._applied()
    )
    drawn = self.config.samples and self.sources['do_sample'] == _FILE
    return unasked or drawn or bool(self._idle())

  def _applied(self) -> list[str]:
    names = (
      'do_sample',
      'eos_token_id',
      *(() if self.config.samples else _DRAWS),
    )
    return [name for name in FIELDS if name not in names]

  def _idle(self) -> list[str]:
    """What is given and means nothing to greedy decoding."""
    if self.config.samples:
      return []
    idle = {name: _NEUTRAL[name] for name in _DRAWS if name != 'seed'}
    idle['do_sample'] = False
    return [
      name
      for name, neutral in idle.items()
      if self._is_given(name) and getattr(self.config, name) not in (neutral, 0)
    ]

  def _is_given(self, name: str) -> bool:
    return self.sources[name] == 'given'

  def _from(self, name: str) -> str:
    return '' if self._is_given(name) else f' ({self.sources[name]})'


def resolve(given: SamplingConfig, model: SamplingConfig) -> Resolved:
  """Fills in what is not given.

  Args:
    given: the caller's settings.
    model: those of the model's `generation_config.json`.

  Raises:
    InputError: settings that contradict each other.
  """
  values, sources = {}, {}
  # The caller's temperature says whether to draw, more than the file does.
  if given.do_sample is None and given.temperature is not None:
    given = dataclasses.replace(given, do_sample=given.temperature > 0)
  places = [('given', given)]
  if given.use_generation_config:
    places.append((_FILE, model))
  for name in FIELDS:
    found = [
      (source, value)
      for source, cfg in places
      if (value := getattr(cfg, name)) is not None
    ]
    # Which tokens end a text is no preference: a model has them in any case.
    if name == 'eos_token_id' and model.eos_token_id is not None:
      found.append((_FILE, model.eos_token_id))
    found.append(('default', DEFAULTS[name]))
    sources[name], values[name] = found[0]
  low, high = values['min_new_tokens'], values['max_new_tokens']
  require(
    low <= high,
    'sampling.min_new_tokens',
    low,
    f'at most max_new_tokens={high} ({sources["max_new_tokens"]});'
    f' min_new_tokens is {sources["min_new_tokens"]}',
  )
  return Resolved(dataclasses.replace(given, **values), sources)


def from_generation_config(
  fields: dict[str, Any], where: str
) -> SamplingConfig:
  """What a `generation_config.json` says.

  Raises:
    InputError: names the file, the field and its value: a wrong value, or a
      setting that would change the text and that is not supported.
  """
  for name, neutral in _UNSUPPORTED.items():
    value = fields.get(name)
    if value is not None and value not in neutral:
      raise InputError(
        f'{where}: {name}={value!r} is not supported; with'
        ' sampling.use_generation_config=False the file is not used'
      )
  known: dict[str, Any] = {
    name: fields.get(name) for name in FIELDS if name != 'seed'
  }
  for name in ('eos_token_id', 'stop_strings'):
    if isinstance(known[name], list):
      known[name] = tuple(known[name])
  try:
    return SamplingConfig(**known)
  except InputError as error:
    said = str(error).removeprefix('sampling.')
    raise InputError(f'{where}: {said}') from None


def _bool(name: str, value: Any) -> bool:
  require_bool(name, value)
  return bool(value)


def _count(name: str, value: Any) -> int:
  require_int(name, value, 0)
  return int(value)


def _check_logprobs(name: str, value: Any) -> None:
  require_int(name, value, 0)
  wanted = f'an integer <= {MAX_LOGPROBS}'
  require(value <= MAX_LOGPROBS, name, value, wanted)


def _penalty(name: str, value: Any) -> float:
  require_number(name, value, 1 / _MAX_FLOAT, _MAX_FLOAT)
  return float(value)


def _temperature(name: str, value: Any) -> float:
  require_number(name, value, 0, _MAX_FLOAT)
  return float(value)


def _top_p(name: str, value: Any) -> float:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  require(is_number and 0 < value <= 1, name, value, 'a number in (0, 1]')
  return float(value)


def _min_p(name: str, value: Any) -> float:
  require_number(name, value, 0, 1)
  return float(value)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
  ids = value if isinstance(value, (list, tuple)) else (value,)
  ok = all(type(i) is int and 0 <= i <= MAX_INT for i in ids)
  if not ok:  # there may be hundreds
    raise InputError(f'{name}={value!r:.80}: expected a token id or several')
  return tuple(ids)


def _strings(name: str, value: Any) -> tuple[str, ...]:
  strings = value if isinstance(value, (list, tuple)) else (value,)
  ok = all(isinstance(s, str) and s for s in strings)
  require(ok, name, value, 'a string that is not empty, or several')
  require_text(name, value)
  return tuple(strings)


def _seed(name: str, value: Any) -> int:
  is_int = isinstance(value, int) and not isinstance(value, bool)
  ok = is_int and 0 <= value <= _MAX_SEED
  require(ok, name, value, f'an integer in [0, {_MAX_SEED}]')
  return int(value)


_CHECKS = {
  'do_sample': _bool,
  'temperature': _temperature,
  'top_k': _count,
  'top_p': _top_p,
  'min_p': _min_p,
  'repetition_penalty': _penalty,
  'eos_token_id': _token_ids,
  'stop_strings': _strings,
  'max_new_tokens': _count,
  'min_new_tokens': _count,
  'seed': _seed,
}
# What makes the text, and what a model's file may say something of.
FIELDS = tuple(_CHECKS)
DEFAULTS = {
  'do_sample': False,
  'temperature': 1.0,
  'top_k': 50,
  'top_p': 1.0,
  'min_p': 0.0,
  'repetition_penalty': 1.0,
  'eos_token_id': (),
  'stop_strings': (),
  'max_new_tokens': 128,
  'min_new_tokens': 0,
  'seed': 0,
}
_DRAWS = ('temperature', 'top_k', 'top_p', 'min_p', 'seed')
# Values that change nothing.
_NEUTRAL = {**DEFAULTS, 'top_k': 0, 'seed': None, 'max_new_tokens': None}
# Settings of Hugging Face's that change the text and are not ours, with the
# values at which they do nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
  'num_beams': (1,),
  'num_beam_groups': (1,),
  'num_return_sequences': (1,),
  'penalty_alpha': (0,),
  'guidance_scale': (1,),
  'typical_p': (1,),
  'top_h': (),
  'epsilon_cutoff': (0,),
  'eta_cutoff': (0,),
  'diversity_penalty': (0,),
  'encoder_repetition_penalty': (1,),
  'no_repeat_ngram_size': (0,),
  'encoder_no_repeat_ngram_size': (0,),
  'min_length': (0,),
  'bad_words_ids': ([],),
  'sequence_bias': ([], {}),
  'suppress_tokens': ([],),
  'begin_suppress_tokens': ([],),
  'forced_bos_token_id': (),
  'forced_eos_token_id': (),
  'exponential_decay_length_penalty': (),
  'remove_invalid_values': (False,),
  'watermarking_config': (),
  'token_healing': (False,),
  'max_time': (),
  'dola_layers': (),
  'constraints': (),
  'force_words_ids': (),
}
