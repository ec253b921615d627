"""Reading and scoring answers, for tasks and rewards."""
