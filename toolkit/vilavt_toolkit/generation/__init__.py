"""The loop that generates: turns, the KV cache, sampling, constrained decoding, costs."""
