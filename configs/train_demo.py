"""Trains the demo model on the standard library's source.

  python launch/train_demo.py --config=configs/train_demo.py \\
    --workdir=DIR --output=FOLDER

Expect several hours on two CPU cores. A run that is started again on the same DIR
goes on where it stopped. FOLDER gets the model and a card with the run's figures.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  # Deep and narrow: many sublayers to choose from, at a cost for two cores.
  config.model = {
    'vocab_size': 2048,
    'hidden_size': 256,
    'intermediate_size': 768,
    'num_hidden_layers': 16,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 64,
    'max_position_embeddings': 512,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': True,
  }
  config.train = {'steps': 2400, 'decay': 0.6}
  return config
