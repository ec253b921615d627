"""Components of kind policy_loss."""
