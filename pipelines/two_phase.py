"""The pipeline: labelled clips to a deployed pair.

generate_data -> plan_shards -> make_images (a shard each) -> collect_images
  -> train_gate, train_classifier -> evaluate_pair -> export_release -> write_report
  -> compare_releases -> [better] register_version -> deploy_version
"""

from kfp import dsl

from components.collect_images import collect_images
from components.compare_releases import compare_releases
from components.deployment import deploy_version
from components.evaluate_pair import evaluate_pair
from components.export_release import export_release
from components.generate_data import generate_data
from components.make_images import make_images
from components.plan_shards import plan_shards
from components.registration import register_version
from components.train_classifier import train_classifier
from components.train_gate import train_gate
from components.write_report import write_report


@dsl.pipeline(
    name="two-phase", description="Labelled clips to a deployed pair: a gate for devices, a classifier for the cloud."
)
def two_phase(
    workdir: str,
    api_endpoint: str,
    data: str = "",
    wanted: str = "",
    on_bad_clip: str = "skip",
    synth_per_label: int = 40,
    seed: int = 0,
    quick: bool = False,
    backbone: str = "small",
    weights: str = "",
    rule: str = "",
    project: str = "local",
    region: str = "us-central1",
    model: str = "two-phase",
) -> None:
    """`data` empty renders clips; `rule` is empty, `recall=R` or `miss=A,call=B`; `api_endpoint` is Vertex AI's."""
    place = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
    clips = generate_data(data=data, wanted=wanted, workdir=workdir, synth_per_label=synth_per_label, seed=seed)
    shards = plan_shards(clips=clips.outputs["clips"], workdir=workdir)
    with dsl.ParallelFor(shards.output) as shard:
        made = make_images(shard=shard, workdir=workdir)
        made.set_retry(num_retries=2, backoff_duration="2s", backoff_factor=2.0)  # this shard alone; what is made stays
    images = collect_images(
        clips=clips.outputs["clips"],
        shards=shards.output,
        made=dsl.Collected(made.output),
        on_bad_clip=on_bad_clip,
        workdir=workdir,
    ).outputs["images"]
    gate = train_gate(images=images, workdir=workdir, quick=quick, seed=seed).outputs["gate"]
    classifier = train_classifier(
        images=images, workdir=workdir, quick=quick, seed=seed, backbone=backbone, weights=weights
    ).outputs["classifier"]
    evaluation = evaluate_pair(images=images, gate=gate, classifier=classifier, rule=rule, workdir=workdir).outputs[
        "evaluation"
    ]
    release = export_release(
        images=images, gate=gate, classifier=classifier, evaluation=evaluation, workdir=workdir
    ).outputs["release"]
    write_report(
        images=images, gate=gate, classifier=classifier, evaluation=evaluation, release=release, workdir=workdir
    )
    verdict = compare_releases(evaluation=evaluation, release=release, workdir=workdir, **place)
    with dsl.If(verdict.output == "better"):
        version = register_version(release=release, **place)
        deploy_version(release=release, version=version.output, **place)
