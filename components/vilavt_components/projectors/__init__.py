"""Components of kind projector: from the encoder's features to the language model's width."""
