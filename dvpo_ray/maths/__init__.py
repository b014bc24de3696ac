"""Pure functions on tensors. No configuration, no Ray, no models.

Shapes: B answers, T response positions (right-padded). Values have T+1 columns: column 0 is the last prompt token.
"""
