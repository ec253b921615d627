"""Components of kind inquiry encoder."""
