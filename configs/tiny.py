"""A few tokens of the demo model with small settings, for tests.

  python launch/generate.py --config=configs/tiny.py --prompt='def '

Expect eight tokens.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.decode = {'prefill_chunk': 16}
  config.sampling = {'max_new_tokens': 8}
  config.draft = {'verify_widths': (4, 8), 'max_draft_length': 5}
  config.search = {'enabled': False}
  return config
