"""The supervised stage: samples as traces, and a loss on the model's own tokens."""
