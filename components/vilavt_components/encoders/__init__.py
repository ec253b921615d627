"""Components of kind encoder."""
