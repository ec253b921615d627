"""Planning: what a recipe takes in memory, operations and time, found without weights and without a GPU."""
