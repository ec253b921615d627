"""The supervised stage: traces in, a trained model out."""
