"""Conversations: ask, stream, fork, save, print, and the terminal."""
