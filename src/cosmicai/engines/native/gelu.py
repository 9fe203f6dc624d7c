"""Writes gelu.h: the polynomial by which the encoder computes GELU. Run it as `python gelu.py >gelu.h`."""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev

RANGE, DEGREE = 5.2, 14  # beyond the range GELU is 0 or x to 5e-7


def fit() -> list[float]:
    """Return the coefficients of (Phi(x) - 1/2) / x as a polynomial of s = 2 x^2 / RANGE^2 - 1, lowest power first.

    Least squares at Chebyshev's points, weighted by x^2, by which an error there changes GELU.
    """
    s = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    x = np.sqrt((s + 1) / 2) * RANGE
    values = np.array([0.5 * math.erf(value / math.sqrt(2)) / value for value in x])
    return [float(value) for value in chebyshev.cheb2poly(chebyshev.chebfit(s, values, DEGREE, w=np.maximum(x, 0.3)))]


if __name__ == "__main__":
    print("// Written by gelu.py.\n#pragma once")
    print(f"constexpr float GELU_RANGE = {RANGE}f;")
    print(f"constexpr float GELU[] = {{\n    {', '.join(f'{value:.9e}f' for value in fit())}}};")
