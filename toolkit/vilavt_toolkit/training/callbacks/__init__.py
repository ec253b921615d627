"""Lightning callbacks of both stages."""
