"""Fits of the layer time forms: least squares of the relative error, no coefficient negative.

Minimised is ``Σ ((f(A, N) - t)/t)²``. ``sum`` is a linear problem (non-negative least squares,
exact). ``max`` and ``p2`` are not convex in their coefficients: several starts, the best kept;
``max`` alternates between "which side is slower where" and two linear problems, and both are
polished by a bounded trust-region search (scipy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

from moeopt.calibrate.layer_cost import FORMS
from moeopt.calibrate.measurements import Measurements
from moeopt.errors import InputError
from moeopt.problem import FloatArray, LayerTime

_ROUNDS = 60
#: Quantiles of tokens per activated expert that part the two sides of ``max`` at the start.
_STARTS = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Fit:
    """One form fitted to measurements.

    Attributes
    ----------
    layer_time : LayerTime
    mean_error, largest_error : float
        Absolute relative errors over the measurements.
    root_mean_square_error : float
        Root of the mean square of the relative errors: what was minimised.
    """

    layer_time: LayerTime
    mean_error: float
    largest_error: float
    root_mean_square_error: float

    def block(self) -> dict[str, float | str]:
        """``layer_time`` as an instance has it, to four digits."""
        f, names = self.layer_time, _coefficients(self.layer_time)
        return {"form": f.form} | {name: float(f"{getattr(f, name):.4g}") for name in names}


def fit(measured: Measurements, form: str) -> Fit:
    """Fit one form.

    Parameters
    ----------
    measured : Measurements
    form : {"sum", "max", "p2"}

    Raises
    ------
    InputError
        Unknown form.
    """
    starts = {"sum": _sum_starts, "max": _max_starts, "p2": _p2_starts}
    if form not in starts:
        raise InputError(f"form {form!r} is unknown (known: {', '.join(FORMS)})")
    found = [evaluate(measured, layer_time) for layer_time in starts[form](measured)]
    return min(found, key=lambda result: result.root_mean_square_error)


def fit_all(measured: Measurements, forms: tuple[str, ...] = FORMS) -> list[Fit]:
    """Fit several forms, the one with the least mean error first."""
    return sorted((fit(measured, form) for form in forms), key=lambda found: found.mean_error)


def evaluate(measured: Measurements, layer_time: LayerTime) -> Fit:
    """Errors of given coefficients."""
    error = np.abs(layer_time.of(measured.activated, measured.tokens) / measured.time_us - 1.0)
    return Fit(
        layer_time, float(error.mean()), float(error.max()), float(np.sqrt((error**2).mean()))
    )


def _linear(columns: list[FloatArray], time_us: FloatArray) -> FloatArray:
    """Non-negative least squares of the relative error."""
    matrix = np.stack(columns, axis=1) / time_us[:, None]
    # Columns of very different sizes: scaled, the tolerance of nnls means the same for each.
    size = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    found: FloatArray = nnls(matrix / size, np.ones(len(time_us)))[0] / size
    return found


def _sum_starts(m: Measurements) -> Iterator[LayerTime]:
    a, b, beta = _linear([np.ones(len(m)), m.activated, m.tokens], m.time_us).tolist()
    yield LayerTime("sum", a, b, 0.0, beta)


def _max_starts(m: Measurements) -> Iterator[LayerTime]:
    ratio = m.tokens / m.activated
    for quantile in _STARTS:
        many = ratio > np.quantile(ratio, quantile)
        seen: set[bytes] = set()
        current: LayerTime | None = None
        while many.any() and not many.all() and many.tobytes() not in seen and len(seen) < _ROUNDS:
            seen.add(many.tobytes())
            few = ~many
            a, b = _linear([np.ones(few.sum()), m.activated[few]], m.time_us[few]).tolist()
            c, beta = _linear([np.ones(many.sum()), m.tokens[many]], m.time_us[many]).tolist()
            current = LayerTime("max", a, b, c, beta)
            yield current
            many = c + beta * m.tokens > a + b * m.activated
        if current is not None:
            yield _polished(m, current)
    a, b = _linear([np.ones(len(m)), m.activated], m.time_us).tolist()
    yield LayerTime("max", a, b)  # one side alone
    c, beta = _linear([np.ones(len(m)), m.tokens], m.time_us).tolist()
    yield LayerTime("max", 0.0, 0.0, c, beta)


def _p2_starts(m: Measurements) -> Iterator[LayerTime]:
    for start in _sum_starts(m):
        for share in (1.0, 0.5, 0.0):
            base_us = share * start.base_us
            yield _polished(m, LayerTime("p2", base_us, start.expert_us, 0.0, start.token_us))
    least = float(m.time_us.min())
    few, many = int(np.argmin(m.tokens)), int(np.argmax(m.tokens))
    b, beta = m.time_us[few] / m.activated[few], m.time_us[many] / m.tokens[many]
    yield _polished(m, LayerTime("p2", 0.1 * least, float(b), 0.0, float(beta)))


def _polished(m: Measurements, start: LayerTime) -> LayerTime:
    """Bounded descent from a start, each coefficient in units of its size there."""
    names = _coefficients(start)
    size = np.array([max(float(getattr(start, name)), _floor(m, name)) for name in names])

    def with_values(scaled: FloatArray) -> LayerTime:
        values = dict(zip(names, (scaled * size).tolist(), strict=True))
        return LayerTime(start.form, **values)

    def residual(scaled: FloatArray) -> FloatArray:
        return with_values(scaled).of(m.activated, m.tokens) / m.time_us - 1.0

    at = np.array([float(getattr(start, name)) for name in names]) / size
    result = least_squares(residual, at, bounds=(0.0, np.inf), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    # The search ends near a bound, not on it.
    return with_values(np.where(result.x < 1e-9, 0.0, result.x))


def _coefficients(layer_time: LayerTime) -> list[str]:
    third = ["token_base_us"] if layer_time.form == "max" else []
    return ["base_us", "expert_us", *third, "token_us"]


def _floor(m: Measurements, name: str) -> float:
    """A coefficient at which its term is a hundredth of the typical time."""
    per: dict[str, Callable[[], float]] = {
        "expert_us": lambda: float(np.median(m.activated)),
        "token_us": lambda: float(np.median(m.tokens)),
    }
    return 0.01 * float(np.median(m.time_us)) / per.get(name, lambda: 1.0)()
