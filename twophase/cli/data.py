"""`twophase data ...`: clips and their images."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import (
    WORKDIR,
    AsJson,
    DataPlace,
    OnBadClip,
    PerLabel,
    Release,
    Seed,
    Wanted,
    Workdir,
    data_place,
    one_of,
    print_json,
    progress,
    wanted_labels,
)

app = typer.Typer(name="data", no_args_is_help=True, help="Clips and their images.")


@app.command("synth")
def data_synth(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    per_label: PerLabel = 40,
    seed: Seed = 0,
    label: Annotated[list[str] | None, typer.Option(help="Only these labels (repeat it).")] = None,
    soundfont: Annotated[list[Path] | None, typer.Option(help="More players: SoundFont 2 files (repeat it).")] = None,
) -> None:
    """Render labelled clips from the General MIDI soundfont."""
    from twophase.audio import synth

    labels = tuple(label) if label else synth.LABELS + synth.OTHER_LABELS
    written = synth.write_clips(folder, per_label, seed, labels, soundfonts=soundfont or ())
    silent = f"; {written.silent} silent ones were dropped" if written.silent else ""
    typer.echo(f"{sum(written.clips.values())} clips of {len(written.clips)} labels in {folder}{silent}")


@app.command("images")
def data_images(
    data: DataPlace,
    workdir: Workdir = WORKDIR,
    store: Annotated[
        str, typer.Option(help="Keep images in this folder or URL, which many runs may share. Default: the workdir.")
    ] = "",
    wanted: Wanted = "",
    png: Annotated[Path | None, typer.Option(help="Also write labelled PNG folders here.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this PNG file.")] = None,
    on_bad_clip: OnBadClip = "skip",
) -> None:
    """Make the images of a data folder, as the pipeline does; and pictures of them."""
    from twophase.audio import dataset, images, pictures

    one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    found = dataset.read_source(data_place(data), wanted_labels(wanted), workdir.resolve())
    made = images.make_all(workdir.resolve(), found, on_bad_clip, progress("make images"), data_place(store))
    left_out = made.bad
    typer.echo(f"{len(made)} images of {len(made.clips)} clips; {len(left_out)} files left out")
    for name, reason in left_out:
        typer.echo(f"left out: {name}: {reason}")
    if png is not None:
        typer.echo(f"{pictures.export_png(made, png)} PNG files below {png}")
    if sheet is not None:
        pictures.contact_sheet(made, sheet)
        typer.echo(str(sheet))


@app.command("inspect")
def data_inspect(
    data: DataPlace,
    workdir: Workdir = WORKDIR,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Counts, durations, rates; silent, clipped, duplicate and unusable clips; and what to do about them."""
    from twophase.audio import inspection, pictures

    found, images = inspection.inspect(data_place(data), workdir.resolve(), progress("inspect"))
    if sheet is not None and images is not None:
        pictures.contact_sheet(images, sheet)
    if as_json:
        print_json({**found.to_json(), "sheet": str(sheet) if sheet is not None and images is not None else None})
    else:
        inspection.show(found)


@app.command("forget")
def data_forget(
    wish: Annotated[
        str, typer.Argument(help="A clip's name or digest, a group, or a label.", metavar="CLIP|GROUP|LABEL")
    ],
    workdir: Workdir = WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Take someone's clips out of images and next trainings, and say which releases still carry them."""
    from dataclasses import asdict

    from twophase.audio.forget import forget

    found = forget(workdir.resolve(), wish)
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{len(found.clips)} clips are forgotten; {found.with_images} of them had images")
    typer.echo("these images are deleted, and all reports of this workdir, which show and play clips")
    typer.echo("the files themselves are yours to delete:\n  " + "\n  ".join(found.files))
    for release in found.releases:
        typer.echo(
            f"{release} learned from them: train again, then delete its versions and {workdir}/releases/{release}"
        )


@app.command("label")
def data_label(
    release: Release,
    data: DataPlace,
    sheet: Annotated[Path, typer.Option(help="The CSV file to be filled in.")] = Path("label.csv"),
    count: Annotated[int, typer.Option(min=1, help="How many clips at most.")] = 30,
) -> None:
    """Name the clips that are most worth listening to: a sheet to fill in, for `data answers`."""
    from twophase.training import label

    chosen = label.choose(release, data_place(data), count, progress("ask about clips"))
    label.write(sheet, chosen)
    typer.echo(
        f"{len(chosen)} clips in {sheet}; correct `label`, put 1 into `manually_verified`, then: "
        f"twophase data answers {sheet} --data {data}"
    )


@app.command("answers")
def data_answers(sheet: Annotated[Path, typer.Argument(help="A sheet that was filled in.")], data: DataPlace) -> None:
    """Take the verified lines of a sheet into the data's CSV file (labels.csv), which the next run reads."""
    from twophase.training import label

    place = data_place(data)
    typer.echo(f"{label.merge(place, sheet)} labels changed or given in {label.table_of(place)}")
