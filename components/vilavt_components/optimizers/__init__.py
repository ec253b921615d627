"""Components of kind optimizer: build a torch optimizer from named parameters."""
