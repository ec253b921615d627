"""Components of kind advantage: from the rewards of a prompt group to how much better each rollout is."""
