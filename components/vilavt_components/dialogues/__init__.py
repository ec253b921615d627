"""Components of kind dialogue: prompts, how a turn is written and read, and how regions are announced."""
