"""From measured runs to the factors of a cluster, each with how well the runs determine it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.calibration.least_squares import Estimate, fit
from planner.calibration.runs import Run, predict
from planner.cluster import Cluster
from planner.timing.factors import FACTOR_RANGE, FACTORS, HOST_UNCERTAINTY, SUFFIX, factors_of

PRIORS = {"compute": 0.10, "memory": 0.15, "scale_up": 0.15, "network": 0.25, "host": HOST_UNCERTAINTY}
"""How far machines of one kind differ in each [standard deviation of the logarithm], from the scatter of the published
runs that the constants were fitted to: clocks and power least, networks and hosts most."""
MODEL_ERROR = 0.08
"""What the model of time gets wrong from one run to the next on one machine, when its factors are right [standard
deviation of the logarithm]. Within the published sources of `plan validate --what step` runs scatter by 0.04 to 0.11
about their source's mean. Factors fitted to 3 runs of each source, whose biases the constants leave small, keep the
median error of its other runs with 0.08 (6.3 and 6.4 %) and raise it with 0.03 (to 7.1 %): runs that are trusted too
much pull the factors after their noise."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Factors over those that the cluster had, and the runs' step times with them."""

    estimates: tuple[Estimate, ...]
    seconds: tuple[float, ...]
    """Predicted for each run with the determined factors."""
    runs: tuple[Run, ...]

    @property
    def ratios(self) -> dict[str, float]:
        return {e.name: e.ratio for e in self.estimates if e.determined}

    @property
    def relative_error(self) -> float | None:
        """What is left [root mean square of log(predicted / measured)], with the degrees of freedom that the factors
        took. None where so few runs say nothing about it."""
        free = len(self.runs) - len(self.ratios)
        if free < 2:
            return None
        left = [math.log(s / run.summary.median_seconds) for s, run in zip(self.seconds, self.runs, strict=True)]
        return math.sqrt(sum(x * x for x in left) / free)


def fit_runs(runs: Sequence[Run], cluster: Cluster, model_error: float = MODEL_ERROR) -> Fitted:
    """The factors that explain the runs best, on top of those in the cluster's calibration."""
    measured = [run.summary.median_seconds for run in runs]

    def residuals(ratios: tuple[float, ...]) -> list[float]:
        on = dict(zip(FACTORS, ratios, strict=True))
        return [math.log(m / predict(run.launch, cluster, on)) for m, run in zip(measured, runs, strict=True)]

    errors = [math.hypot(model_error, run.summary.spread / 1.35 / math.sqrt(run.summary.count)) for run in runs]
    estimates = fit(FACTORS, [PRIORS[name] for name in FACTORS], residuals, errors)
    on = {e.name: e.ratio for e in estimates}
    return Fitted(estimates, tuple(predict(run.launch, cluster, on) for run in runs), tuple(runs))


def calibration_of(fitted: Fitted, cluster: Cluster) -> dict[str, object]:
    """The cluster's calibration with the determined factors, each with its provenance."""
    old = factors_of(cluster)
    calibration: dict[str, object] = dict(cluster.calibration)
    for estimate in fitted.estimates:
        if estimate.determined:
            value = getattr(old, estimate.name) * estimate.ratio
            value = min(max(value, FACTOR_RANGE[0]), FACTOR_RANGE[1])
            calibration[estimate.name + SUFFIX] = {
                "value": round(value, 4),
                "source": f"plan calibrate: within {estimate.deviation * 100:.1f} %; {provenance(fitted.runs)}",
            }
    if fitted.relative_error is not None:
        calibration["relative_error"] = {
            "value": round(min(1.0, fitted.relative_error), 4),
            "source": f"plan calibrate: what is left of {len(fitted.runs)} runs after the fit (root mean square)",
        }
    return calibration


def provenance(runs: Sequence[Run], most: int = 4) -> str:
    """Where figures fitted to the runs come from."""
    said = [run.summary.provenance for run in runs[:most]]
    return "; ".join(said) + (f"; and {len(runs) - most} more" if len(runs) > most else "")
