"""Components of kind encoder: they turn views into packed vision tokens and these into features.

A component with helpers is a folder; in each, read `encoder.py` first. `image_encoder.py` is the base that `timm`,
`timm_stages` and `open_clip` share.
"""
