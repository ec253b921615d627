"""Components of kind modulator: change the blocks of an encoder under the inquiry."""
