"""Which start to take, in a sentence with the numbers that it rests on: gain, seed noise, cost of bits."""

from dataclasses import dataclass

from sprachbund.studies.analysis import Analysis
from sprachbund.studies.bootstrap import Estimate
from sprachbund.studies.power_law import PowerLaw


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do at an amount of data.

    Attributes:
        hours: of data.
        gain: expected of the first arm over the second.
        measured: whether the hours lie within those measured.
        sentence: for people.
    """

    hours: float
    gain: Estimate
    measured: bool
    sentence: str


def decide(analysis: Analysis, hours: float) -> Decision | None:
    """The decision at so many hours of data; None without a law."""
    law = analysis.fitted.law
    if law is None:
        return None
    gain = law.gap(hours)
    measured = min(law.hours) <= hours <= max(law.hours)
    parts = [_gain(analysis, law, hours, gain, measured=measured)]
    parts += _noise(analysis, law, gain)
    parts += _bits(analysis, gain)
    return Decision(hours=hours, gain=gain, measured=measured, sentence=" ".join(parts))


def _gain(analysis: Analysis, law: PowerLaw, hours: float, gain: Estimate, *, measured: bool) -> str:
    first, second = analysis.grid.arms
    low, high = gain.interval
    outside = f", beyond the {min(law.hours):g} to {max(law.hours):g} h measured" if not measured else ""
    caution = "" if analysis.fitted.trusted else " by a law that is not to be trusted"
    return (
        f"At {hours:g} h{outside}, starting from {first} rather than {second} is expected{caution} to gain "
        f"{_points(gain.value)} {analysis.grid.unit} (95%: {_points(low)} to {_points(high)})."
    )


def _noise(analysis: Analysis, law: PowerLaw, gain: Estimate) -> list[str]:
    """The gain beside the noise of seeds, and where it drowns in it."""
    noise, first = analysis.grid.seed_noise, analysis.grid.arms[0]
    if noise is None:
        return ["Each cell has one seed, so how much of this another seed would change is not known."]
    if noise == 0:
        return ["Seeds do not differ."]
    low, high = gain.interval
    if low > noise:
        verdict = f"take {first}"
    elif high < noise:
        verdict = "another seed matters as much as the start: take either"
    else:
        verdict = f"{first} is the better bet, but one run may not show it"
    drowned = law.hours_at(noise)
    until = f"; it comes down to that at about {drowned:.2g} h" if drowned < 1e6 else ""
    until = until.replace(f"{drowned:.2g}", f"{float(f'{drowned:.2g}'):g}")
    return [f"Seeds differ by {_points(noise)} (one standard deviation){until}: {verdict}."]


def _bits(analysis: Analysis, gain: Estimate) -> list[str]:
    """The gain beside what fewer bits cost."""
    sentences = []
    for cost in analysis.bit_costs:
        low, high = cost.mean.interval
        relation = "more" if cost.mean.value > gain.value else "less"
        sentences.append(
            f"{cost.bits:g} bits cost {_points(cost.mean.value)} ({_points(low)} to {_points(high)}), "
            f"{relation} than the start gains{_same_for_both(analysis, cost.difference)}."
        )
    return sentences


def _same_for_both(analysis: Analysis, difference: Estimate) -> str:
    first, second = analysis.grid.arms
    low, high = difference.interval
    if low <= 0 <= high:
        return ", and no more from one start than from the other as far as can be seen"
    dearer = second if difference.value > 0 else first
    return f", and {_points(abs(difference.value))} more from {dearer}"


def _points(value: float) -> str:
    """Two digits after the point, or two that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
