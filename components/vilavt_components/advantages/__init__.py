"""Components of kind advantage."""
