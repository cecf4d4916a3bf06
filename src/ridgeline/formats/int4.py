"""int4: half a byte a weight, a scale for 64 columns of a row; options group, zero and scale (formats/affine.py)."""

from .affine import AffineFormat

FORMAT = AffineFormat("int4", 4, usual_span=64, span=64)
