"""Answers: read them, compare them with the truth, score them. Used by reward `answer` and by the tasks."""
