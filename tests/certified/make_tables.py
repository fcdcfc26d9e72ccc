"""Write the certified tables of this folder: diffusion into a sphere with forty digits.

Run ``python tests/certified/make_tables.py`` where mpmath is installed; it takes a minute. The
formulas are evaluated as they stand, with precision to spare in place of care, in two ways each
that must agree:

* surface held: the sine series against the error-function series (Crank, equations 6.18 to 6.21);
* surface exchange: the series of Crank's equations 6.40 to 6.43 against a numerical inversion
  (Talbot's contour) of the Laplace transform of the same problem.

Radii and times are written with all the digits of the double that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import mpmath
from mpmath import mp, mpf

HERE = Path(__file__).parent
DIGITS = 30
AGREEMENT = mpf(10) ** -25
RADII = (0.0, 1e-9, 3e-5, 9.9e-5, 1.01e-4, 1e-3, 0.03, 0.25, 0.5, 0.77, 0.95, 0.999, 1.0)
TIMES = (1e-9, 1e-6, 1e-4, 3e-3, 0.01, 0.02, 0.0299, 0.0301, 0.05, 0.0999999, 0.1, 0.1000001)
TIMES = (*TIMES, 0.13, 0.2, 0.3, 0.5, 1.0, 4.0)
BIOTS = (1e-3, 0.05, 0.3, 0.999999, 1.0, 1.000001, 2.0, 3.9, 10.0, 50.0, 1e3, 1e6)
EXCHANGE_RADII = (0.0, 5e-7, 2e-6, 0.03, 0.5, 0.95, 1.0)
EXCHANGE_TIMES = (1e-9, 1e-5, 3e-3, 0.02, 0.0299, 0.0301, 0.1, 0.7, 4.0)

Number = mpf


def held_by_errors(r: Number, tau: Number) -> Number:
    """Concentration from reflected error functions."""
    width = 2 * mp.sqrt(tau)
    odd = [2 * n + 1 for n in range(25)]
    return mp.fsum(mp.erfc((n - r) / width) - mp.erfc((n + r) / width) for n in odd) / r


def sine_terms(tau: Number) -> range:
    """As many as it takes for the next to be below 1e-30."""
    return range(1, int(mp.sqrt(70 / tau) / mp.pi) + 2)


def held_by_sines(r: Number, tau: Number) -> Number:
    """Concentration from the sine series."""
    terms = (
        (-1) ** n / mpf(n) * mp.sin(n * mp.pi * r) * mp.exp(-(n**2) * mp.pi**2 * tau)
        for n in sine_terms(tau)
    )
    return 1 + 2 / (mp.pi * r) * mp.fsum(terms)


def held_uptake_by_errors(tau: Number) -> Number:
    """Mean concentration from integrals of the error function."""

    def ierfc(x: Number) -> Number:
        return mp.exp(-(x**2)) / mp.sqrt(mp.pi) - x * mp.erfc(x)

    waves = mp.fsum(ierfc(n / mp.sqrt(tau)) for n in range(1, 60))
    return 6 * mp.sqrt(tau) * (1 / mp.sqrt(mp.pi) + 2 * waves) - 3 * tau


def held_uptake_by_sines(tau: Number) -> Number:
    """Mean concentration from the exponential series."""
    terms = (mp.exp(-(n**2) * mp.pi**2 * tau) / mpf(n) ** 2 for n in sine_terms(tau))
    return 1 - 6 / mp.pi**2 * mp.fsum(terms)


def roots(biot: Number, count: int) -> list[Number]:
    """Roots of ``beta cot(beta) + L - 1``, by bisection between multiples of pi."""

    def miss(beta: Number) -> Number:
        return beta * mp.cos(beta) + (biot - 1) * mp.sin(beta)

    found = []
    for n in range(1, count + 1):
        # Zero is a root that does not count: the first lies above sqrt(L) / 2 for small L.
        low = (n - 1) * mp.pi if n > 1 else min(mp.sqrt(biot) / 2, mpf(1) / 10)
        high = n * mp.pi
        sign = mp.sign(miss(low + mpf(10) ** -30))
        for _ in range(150):
            middle = (low + high) / 2
            low, high = (middle, high) if mp.sign(miss(middle)) == sign else (low, middle)
        found.append((low + high) / 2)
    return found


def exchange_by_series(r: Number, tau: Number, biot: Number, betas: list[Number]) -> Number:
    """Equation 6.41, with its divisor ``sin(beta)``."""
    terms = (
        mp.exp(-(b**2) * tau) / (b**2 + biot * (biot - 1)) * mp.sin(b * r) / mp.sin(b)
        for b in betas
    )
    return 1 - 2 * biot / r * mp.fsum(terms)


def exchange_uptake_by_series(tau: Number, biot: Number, betas: list[Number]) -> Number:
    """Equation 6.43."""
    terms = (mp.exp(-(b**2) * tau) / (b**2 * (b**2 + biot * (biot - 1))) for b in betas)
    return 1 - 6 * biot**2 * mp.fsum(terms)


def inverted(transform: Callable[[Number], Number], tau: Number) -> Number:
    """Inverse Laplace transform."""
    return mpmath.invertlaplace(transform, tau, method="talbot", degree=60).real


def exchange_by_inversion(r: Number, tau: Number, biot: Number) -> Number:
    """Concentration from its transform."""

    def transform(s: Number) -> Number:
        q = mp.sqrt(s)
        bottom = q * mp.cosh(q) + (biot - 1) * mp.sinh(q)
        return biot * mp.sinh(q * r) / (r * s * bottom)

    return inverted(transform, tau)


def exchange_uptake_by_inversion(tau: Number, biot: Number) -> Number:
    """Mean concentration: three times the flux over s."""

    def transform(s: Number) -> Number:
        q = mp.sqrt(s)
        top, bottom = q * mp.cosh(q) - mp.sinh(q), q * mp.cosh(q) + (biot - 1) * mp.sinh(q)
        return 3 * biot / s**2 * top / bottom

    return inverted(transform, tau)


def agreed(first: Number, second: Number) -> Number:
    """The first of two values that must be the same."""
    if abs(first - second) > AGREEMENT:
        raise ArithmeticError(f"{mp.nstr(first, DIGITS)} and {mp.nstr(second, DIGITS)}")
    return first


def number(radius: float) -> Number:
    """A radius; the centre is replaced by a place so near that nothing changes."""
    return mpf(radius) if radius > 0 else mpf(10) ** -15


def write(name: str, columns: str, rows: Iterable[tuple[Number, ...]]) -> None:
    """One table, a header and one line a value."""
    lines = [f"# {columns}; written by make_tables.py"]
    for *arguments, value in rows:
        shown = mp.nstr(value, DIGITS) if abs(value) > AGREEMENT else "0.0"
        lines.append(" ".join([*(repr(float(a)) for a in arguments), shown]))
    (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def held() -> Iterable[tuple[Number, ...]]:
    """Rows of the table for a surface that is held; the sine series wherever it ends in time."""
    for tau in map(mpf, TIMES):
        for radius in RADII:
            value = held_by_errors(number(radius), tau)
            if tau > 1e-7:
                agreed(value, held_by_sines(number(radius), tau))
            yield mpf(radius), tau, value


def held_uptake() -> Iterable[tuple[Number, ...]]:
    """Rows of its mean."""
    for tau in map(mpf, TIMES):
        value = held_uptake_by_errors(tau)
        yield tau, agreed(value, held_uptake_by_sines(tau)) if tau > 1e-7 else value


def exchange() -> Iterable[tuple[Number, ...]]:
    """Rows of the table for exchange; the series from the times at which it ends soon."""
    for biot in map(mpf, BIOTS):
        betas = roots(biot, 60)
        for tau in map(mpf, EXCHANGE_TIMES):
            for radius in EXCHANGE_RADII:
                value = exchange_by_inversion(number(radius), tau, biot)
                if tau > 2e-3:
                    agreed(value, exchange_by_series(number(radius), tau, biot, betas))
                yield mpf(radius), tau, biot, value


def exchange_uptake() -> Iterable[tuple[Number, ...]]:
    """Rows of its mean."""
    for biot in map(mpf, BIOTS):
        betas = roots(biot, 60)
        for tau in map(mpf, EXCHANGE_TIMES):
            value = exchange_uptake_by_inversion(tau, biot)
            if tau > 2e-3:
                agreed(value, exchange_uptake_by_series(tau, biot, betas))
            yield tau, biot, value


def main() -> None:
    """Write all tables."""
    mp.dps = 60
    write("sphere_held.txt", "r, tau, concentration", held())
    write("sphere_held_uptake.txt", "tau, uptake", held_uptake())
    write("sphere_exchange.txt", "r, tau, biot, concentration", exchange())
    write("sphere_exchange_uptake.txt", "tau, biot, uptake", exchange_uptake())


if __name__ == "__main__":
    main()
