"""exp, log, powers, sine and cosine of floats by single operations: the C library's last bits differ between processors.

Relative errors are below 1e-15, of powers below 1e-15 · (1 + |exponent · log x|). `exps`, `logs` and `cosines_and_sines` give the
same bits for each number of an array.
"""

import math
from typing import TypeVar

import numpy as np

LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
"""log 2 in two parts; products of the first with integers below 2^20 are exact."""
LOG2E = float.fromhex("0x1.71547652b82fep+0")
"""1 / log 2."""
EXPONENTIAL = [1 / math.factorial(n) for n in range(14)]
"""Coefficients of e^x for |x| up to log 2 / 2, lowest first."""
ATANH = [2 / n for n in range(1, 40, 2)]
"""Coefficients of log((1 + s) / (1 - s)) in odd powers of s, for |s| up to 0.172."""

SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(9)]
COSINE = [(-1) ** n / math.factorial(2 * n) for n in range(10)]
"""Coefficients in odd and even powers, for angles up to π / 4."""


Number = TypeVar("Number", float, np.ndarray)


def polynomial(x: Number, coefficients: list[float]) -> Number:
    """Horner's scheme, lowest coefficient first."""
    y = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        y = y * x + coefficient
    return y


def exp(x: float) -> float:
    """e^x: 0 below -745, infinite above 709.78."""
    if not -745 <= x <= 709.78:
        return x if math.isnan(x) else 0.0 if x < 0 else math.inf
    k = round(x * LOG2E)
    rest = (x - k * LOG2_HIGH) - k * LOG2_LOW
    y = polynomial(rest, EXPONENTIAL)
    return math.ldexp(math.ldexp(y, k // 2), k - k // 2)


def exps(x: np.ndarray) -> np.ndarray:
    """e^x of numbers from -700 to 709."""
    k = np.rint(x * LOG2E)
    y = polynomial((x - k * LOG2_HIGH) - k * LOG2_LOW, EXPONENTIAL)
    return np.asarray(np.ldexp(y, k.astype(int)))


def log(x: float) -> float:
    """log x for x above 0."""
    m, k = math.frexp(x)
    if m < math.sqrt(0.5):
        m, k = m * 2, k - 1
    s = (m - 1) / (m + 1)
    return k * LOG2_HIGH + (k * LOG2_LOW + polynomial(s * s, ATANH) * s)


def logs(x: np.ndarray) -> np.ndarray:
    """log x of numbers above 0."""
    m, k = np.frexp(x)
    is_low = m < math.sqrt(0.5)
    m, k = np.where(is_low, m * 2, m), k - is_low
    s = (m - 1) / (m + 1)
    return np.asarray(k * LOG2_HIGH + (k * LOG2_LOW + polynomial(s * s, ATANH) * s))


def power(x: float, exponent: float) -> float:
    """x^exponent as in C: NaN for negative x unless the exponent is an integer."""
    if exponent == int(exponent) and abs(exponent) <= 64:
        y = 1.0
        for bit in f"{int(abs(exponent)):b}":
            y = y * y * x if bit == "1" else y * y
        return y if exponent >= 0 else 1 / y if y else math.inf
    if x <= 0:
        if x < 0 and exponent != int(exponent):
            return math.nan
        return 0.0 if exponent > 0 else math.inf
    return exp(log(x) * exponent)


def cosine_and_sine(turns: float) -> tuple[float, float]:
    """cos(2π · turns) and sin(2π · turns)."""
    quarter = round(turns * 4)
    angle = (turns * 4 - quarter) * (math.pi / 2)
    x, y = polynomial(angle * angle, COSINE), polynomial(angle * angle, SINE) * angle
    return ((x, y), (-y, x), (-x, -y), (y, -x))[quarter % 4]


def cosines_and_sines(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos(2π · turns) and sin(2π · turns) of numbers."""
    quarters = np.rint(turns * 4)
    angles = (turns * 4 - quarters) * (math.pi / 2)
    x, y = polynomial(angles * angles, COSINE), polynomial(angles * angles, SINE) * angles
    choice = quarters.astype(int) % 4
    return np.choose(choice, [x, -y, -x, y]), np.choose(choice, [y, x, -y, -x])
