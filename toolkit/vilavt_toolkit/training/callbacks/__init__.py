"""Lightning callbacks that both stages share."""
