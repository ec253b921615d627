"""Components of kind projector."""
