"""Code that components of several kinds share; nothing in it is registered."""
