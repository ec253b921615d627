"""Components of kind optimizer."""
