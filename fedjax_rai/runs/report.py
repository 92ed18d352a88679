"""A finished run in words, and the parts of its summary that say where its numbers come from."""

from pathlib import Path

from fedjax_rai.runs import files
from fedjax_rai.runs.folder import SUMMARY


def report(folder: Path) -> str:
    """A finished run's rates, a line each, and where it lies."""
    summary = files.read_json(folder / SUMMARY)
    parts = ", ".join(summary["synthetic"])
    lines = [f"{f'SYNTHETIC (tiny world: {parts}); ' if parts else ''}percent, 95 % intervals over prompts"]
    for name, rate in summary["rates"].items():
        shown = f"{rate['mean']:5.1f}  [{rate['low']:.1f}, {rate['high']:.1f}]" if rate else "not measured"
        lines.append(f"  {name:<28}{shown}")
    if summary["guard"]:
        quality = summary["guard"]["fitted"] or summary["guard"]["released"]
        lines.append(f"  guard on the clients' pairs: {', '.join(f'{name} {q:.1f}' for name, q in quality.items())}")
    if own := summary["critique"]:
        made = f"{own['unsafe']} unsafe responses, {_percent(own['made_safe'])} of them made safe"
        left = (
            f"{own['safe']} safe, {_percent(own['left_alone'])} left alone, {_percent(own['made_unsafe'])} made unsafe"
        )
        lines.append(f"  critique, by {own['judge']}: {made}; {left}")
    if own := summary["cost"]["cai"]:
        epochs = own["flops"] / own["full_epoch_flops"]
        saved = (
            f"{100 - 100 * epochs:.1f} % of a full epoch's FLOPs saved" if epochs < 1 else f"{epochs:.1f} full epochs"
        )
        lines.append(
            f"  CAI: {own['phases']} phases, {own['seconds']:.0f} s, {own['generated_tokens']} tokens generated, "
            f"{own['trained_tokens']} trained; {saved}"
        )
    return "\n".join([*lines, str(folder)])


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1f} %"
