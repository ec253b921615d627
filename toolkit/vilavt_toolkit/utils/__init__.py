"""Small helpers without a floor of their own: files, text, console, progress, pictures, versions, Pillow."""
