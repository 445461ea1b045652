"""How tokens are chosen and when a text ends: Hugging Face's names and meaning.

A field that is None is not given. A field that the caller does not give comes from
the model's `generation_config.json`. A field that is missing there too comes from
`DEFAULTS`. These are Hugging Face's own defaults except for max_new_tokens; few
know that top_k=50 is among them. `resolve` says where each value came from.
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
_MAX_FLOAT = 1e30  # float32 holds this number and its inverse


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How tokens are chosen and when a text ends; None: not given.

  Attributes:
    do_sample: draw tokens; else take the most likely token (greedy). If this field
      is not given and a temperature is, the temperature decides: above 0 means
      sampling.
    temperature: logits are divided by it; 0 is greedy.
    top_k: only the k most likely tokens; 0: all.
    top_p: only the most likely tokens that together have this probability.
    min_p: only tokens at least this likely relative to the most likely token.
    repetition_penalty: divides the logits of tokens in the prompt and the text.
      Negative logits are multiplied by it. It holds in greedy decoding too.
    eos_token_id: tokens that end a text; one or several.
    stop_strings: the text ends before the first of these, one or several. On the
      command line they are written with the escapes of --prompt, and several
      strings as ('a', 'b').
    max_new_tokens: the most tokens written for a prompt.
    min_new_tokens: no end-of-text token before so many tokens.
    seed: seed of the draws. The seed and the prompt's index in the run fix the
      draws and with them the text, whatever the batch, the method or the search.
    use_generation_config: take fields that are not given from the model's file.
      Without it the file gives only its end-of-text tokens.
    skip_special_tokens: leave special tokens (`</s>`, `<|im_end|>`) out of the text.
      Without it they stand in the text, the token that ends the text too, and a
      stop string may hold them.
    logprobs: log-probabilities of the tokens, and of so many alternatives. Each
      result has the log-probability of each of its tokens (0: these alone) and of
      so many of the most likely tokens at each place; None: none, which costs
      nothing. The field changes no text, and no file of the model sets it.
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
    """Whether tokens are drawn; holds for a resolved config only."""
    return bool(self.do_sample and self.temperature)


@dataclasses.dataclass(frozen=True)
class Resolved:
  """Settings with every field set, and where each value came from.

  Attributes:
    config: the settings; `logprobs` is as it was given.
    sources: for each field `given`, `generation_config.json` or `default`.
  """

  config: SamplingConfig
  sources: dict[str, str]

  def describe(self) -> str:
    """One line with the settings that apply, and those given without effect."""
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
    """Whether the text differs from what the caller's own settings suggest."""
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
    """The given fields that have no effect in greedy decoding."""
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
  """Fills in the fields that are not given.

  Args:
    given: the caller's settings.
    model: the settings of the model's `generation_config.json`.

  Raises:
    InputError: settings that contradict each other.
  """
  values, sources = {}, {}
  # The caller's temperature says whether to draw; it outweighs the model's file.
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
    # The end-of-text tokens belong to the model: the caller cannot do without them.
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
  """The settings that a `generation_config.json` holds.

  Raises:
    InputError: a value is wrong, or a setting would change the text and is not
      supported. The error names the file, the field and its value.
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
    message = str(error).removeprefix('sampling.')
    raise InputError(f'{where}: {message}') from None


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
  if not ok:  # there may be hundreds of ids: the message is cut
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
# The fields that decide the text, and that a model's file may set.
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
# Values that have no effect on the text.
_NEUTRAL = {**DEFAULTS, 'top_k': 0, 'seed': None, 'max_new_tokens': None}
# Settings of Hugging Face that change the text and are not supported here, with
# the values at which they have no effect.
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
