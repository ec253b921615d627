"""Small helpers without a floor of their own: files, progress, pictures, versions, Pillow."""
