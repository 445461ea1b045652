"""The demo model on the CPU, with settings that suit both.

  launch/demo.sh
  python launch/generate.py --config=configs/demo.py --prompt='def main():'

Expect plain decoding and SWIFT to write the same text, and `identical: yes`. Do
not expect SWIFT to be faster here: on a CPU a pass of so small a model over
eight tokens costs far more than one over a single token.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'demo', 'dtype': 'float32'}
  # Greedy text of so small a model soon loops: not too long.
  config.decode = {'max_new_tokens': 96, 'rounds_per_dispatch': 8}
  # The model is seldom sure, and wide passes are what costs on a CPU.
  config.draft = {
    'confidence_threshold': 0.3,
    'max_draft_length': 7,
    'verify_widths': (4, 8),
  }
  # A few hundred tokens are a short stream: let the search take its time.
  config.search = {'skip_ratio': 0.55, 'opt_interval': 4, 'time_budget': 0.7}
  return config
