"""Pictures of what happened in a dialogue."""
