"""Components of kind policy_loss: the loss of every produced token, and how a step's tokens are weighed."""
