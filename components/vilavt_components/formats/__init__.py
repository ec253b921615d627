"""Components of kind format: readers and writers of checkpoints that other projects use."""
