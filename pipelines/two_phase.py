"""The pipeline: labelled clips to a deployed pair.

generate_data -> plan_shards -> make_images (a shard each) -> collect_images
  -> train_gate, train_classifier -> evaluate_pair -> export_release -> write_report
  -> compare_releases -> [better] register, canary, try, promote: as the place does it (places.py)
"""

from typing import Any

from kfp import dsl

from components.collect_images import collect_images
from components.evaluate_pair import evaluate_pair
from components.export_release import export_release
from components.generate_data import generate_data
from components.make_images import make_images
from components.plan_shards import plan_shards
from components.train_classifier import train_classifier
from components.train_gate import train_gate
from components.write_report import write_report
from pipelines.places import Named, Place
from twophase.targets.target import SERVER_IMAGE


def two_phase(place: Place) -> Any:
    """The pipeline as `place` runs it."""

    @dsl.pipeline(
        name="two-phase",
        description="Labelled clips to a deployed pair: a gate for devices, a classifier for the cloud.",
    )
    def pipeline(
        workdir: str = "/tmp/two-phase",
        store: str = "",
        api_endpoint: str = "",
        data: str = "",
        data_digest: str = "",
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
        server_image: str = SERVER_IMAGE,
        namespace: str = "default",
        releases: str = "",
    ) -> None:
        """`data` empty renders clips; `rule` is empty, `recall=R` or costs; `api_endpoint` is Vertex AI's.

        Costs are as in `miss=A,wrong=B,call=C,byte=D`. `namespace` and `releases` (a URL that the cluster reads) are
        where KServe finds things.
        """
        named = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
        named |= {"namespace": namespace, "releases": releases}
        with place.guard(named):
            found = place.insist(
                generate_data(
                    data=data,
                    data_digest=data_digest,
                    wanted=wanted,
                    workdir=workdir,
                    synth_per_label=synth_per_label,
                    seed=seed,
                )
            )
            clips = found.outputs["clips"]
            planned = place.keep(plan_shards(clips=clips, workdir=workdir))
            with dsl.ParallelFor(planned.outputs["Output"], name="shards") as shard:
                made = place.keep(
                    make_images(
                        clips=clips,
                        shards=planned.outputs["shards"],
                        shard=shard,
                        workdir=workdir,
                        store=store,
                    )
                )
                made.set_retry(num_retries=2, backoff_duration="2s", backoff_factor=2.0)  # alone; what is made stays
                place.sized(made, "4", "8G")
            collected = place.keep(
                collect_images(
                    clips=clips, made=dsl.Collected(made.outputs["made"]), on_bad_clip=on_bad_clip, workdir=workdir
                )
            )
            images = collected.outputs["images"]
            gate = place.insist(
                place.training(train_gate, named)(images=images, workdir=workdir, quick=quick, seed=seed)
            ).outputs["gate"]
            classifier = place.insist(
                place.training(train_classifier, named)(
                    images=images, workdir=workdir, quick=quick, seed=seed, backbone=backbone, weights=weights
                )
            ).outputs["classifier"]
            pair = {"images": images, "gate": gate, "classifier": classifier}
            judged = place.keep(evaluate_pair(clips=clips, rule=rule, workdir=workdir, **pair))
            evaluation = place.sized(judged, "4", "8G").outputs["evaluation"]
            release = place.keep(export_release(evaluation=evaluation, workdir=workdir, **pair)).outputs["release"]
            place.keep(write_report(clips=clips, evaluation=evaluation, release=release, workdir=workdir, **pair))
            go_live_if_better(place, clips, evaluation, release, workdir, named, server_image)

    return pipeline


def go_live_if_better(
    place: Place, clips: Any, evaluation: Any, release: Any, workdir: Any, named: Named, server_image: Any
) -> None:
    """The end of the pipeline: compare with what is live, and only where that is beaten let the release go live."""
    compared = {"clips": clips, "evaluation": evaluation, "release": release, "workdir": workdir}
    verdict = place.ask(place.compare(named, compared))
    with dsl.If(verdict.output == "better", name="better"):
        place.go_live(release, named, server_image)
