"""The reinforcement stage: rollouts of the policy, rewards, and updates from them."""
