"""The exit handler: however a run ends, its log's last line says how, for people and for whoever watches logs."""

from kfp.dsl import PipelineTaskFinalStatus, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def end_of_run(model: str, status: PipelineTaskFinalStatus) -> None:
    """Say how the run of `model` ended: `twophase: {"step": "end of run", ...}`, with the error where it failed."""
    from components.step import step

    with step("end of run") as say:
        say.result(
            f"{model}: {status.state} {status.error_message}".strip(),
            state=status.state,
            job=status.pipeline_job_resource_name,
            error=status.error_message,
        )
