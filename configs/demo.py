"""The demo model on the CPU, with settings that suit both.

  launch/demo.sh
  python launch/generate.py --config=configs/demo.py --prompt='def main():'

Expect plain decoding and SWIFT to write the same text, and `identical: yes`.
Whether SWIFT is faster here depends on the text: with so small a model a pass over
eight tokens costs a CPU far more than a pass over one token, and a text that loops
is easily drafted.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {'path': 'demo', 'dtype': 'float32'}
  config.decode = {'rounds_per_dispatch': 8}
  # Greedy text of so small a model soon loops, so the text is short.
  config.sampling = {'max_new_tokens': 96}
  # The model is seldom sure. On a CPU the costs are wide passes and the search for
  # the runners-up that become a tree's leaves.
  config.draft = {
    'tree': False,
    'confidence_threshold': 0.3,
    'max_draft_length': 7,
    'verify_widths': (4, 8),
  }
  # The model was trained with sublayers left out: it bears more than the usual
  # 0.45.
  config.search = {'skip_ratio': 0.85, 'opt_interval': 4}
  return config
