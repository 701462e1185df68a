"""The model card: what a release is, how good it is and where it came from, as Markdown for people.

Made from `release.json` alone, so that it says nothing that the release does not carry.
"""

from pathlib import Path

from twophase.files import replacing
from twophase.release.manifest import Manifest, read


def write_card(release: Path, path: Path) -> None:
    """Write the card of a release folder to `path`."""
    with replacing(path, "w") as file:
        file.write(card(read(release)))


def card(manifest: Manifest) -> str:
    """The card as Markdown."""
    point = manifest.operating_point
    gate, classifier, pair = (manifest.metrics.get(part, {}) for part in ("gate", "classifier", "pair"))
    figures = {
        "wanted clips that the gate lets through": gate.get("recall"),
        "unwanted clips that it stops": gate.get("stopped"),
        "clips that it asks about": gate.get("escalation_rate"),
        "wanted clips that the classifier names rightly": classifier.get("accuracy"),
        "... among its first three": classifier.get("top3"),
        "all clips that the pair gets right": pair.get("accuracy"),
    }
    clips = manifest.lineage.get("clips", {})
    sides = ", ".join(f"{count} {side}" for side, count in clips.items())
    rows = "\n".join(f"| {what} | {value:.1%} |" for what, value in figures.items() if value is not None)
    digests = {**{k: v for k, v in manifest.lineage.items() if isinstance(v, str)}, **manifest.computes}
    lines = "\n".join(f"- {what}: `{value}`" for what, value in sorted(digests.items()))
    return f"""# {manifest.id}

A gate for devices and a classifier for the cloud, made {manifest.created} by twophase {manifest.twophase}.

**Use.** The gate answers whether a sound is worth asking about; the classifier names what passed it:
{", ".join(manifest.labels)}, or none of these.

**Operating point.** A clip is sent on when the gate's mean logit is at least {point.threshold:.3f}, chosen by
{point.chosen_by}. On validation clips that let {point.recall:.1%} of the wanted ones through and stopped
{point.stopped:.1%} of the others.

**Measured** on {manifest.metrics.get("clips", "no")} test clips that neither model learned from nor was tuned on:

| | |
| --- | --- |
{rows}

**Limits.** The figures hold for sounds like these clips. Other microphones, rooms and labels have to be measured again.

**Where it came from.** Clips: {sides or "not recorded"}. Front end: `{manifest.fingerprint}`.

{lines}
"""
