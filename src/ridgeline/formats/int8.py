"""int8: a signed byte a weight, one scale a row (per channel); options group, zero and scale (formats/affine.py)."""

from .affine import AffineFormat

FORMAT = AffineFormat("int8", 8, usual_span=0, span=0)
