"""The reinforcement stage: rollouts, rewards, policy updates."""
