"""Components of kind modulator."""
