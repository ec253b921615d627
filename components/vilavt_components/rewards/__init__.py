"""Components of kind reward."""
